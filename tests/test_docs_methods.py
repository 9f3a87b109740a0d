"""docs/methods.md: every method has its section, its options are those of the schema, and its example works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import limbeck.config
from limbeck.methods.base import Method

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
METHODS = [get_args(member)[0] for member in get_args(get_args(limbeck.config.Method)[0])]


def options_table(method: type[Method]) -> str:
    """The options as the page has them, from the schema."""
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for name, field in method.model_json_schema()["properties"].items():
        if name != "type":
            default = "–" if field.get("default") is None else f"`{field['default']}`"
            what = " ".join(field["description"].replace("``", "`").split())
            lines.append(f"| `{name}` | {default} | {what} |")
    return "\n".join(lines) if len(lines) > 2 else "It has no options."


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_is_explained_with_its_paper_and_its_options(method: type[Method]) -> None:
    """Guards a page that says what the code said some time ago."""
    name = method().type
    found = re.search(rf"^### `{name}`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/methods.md has no section ### `{name}`"
    assert options_table(method) in found[1], f"the options of {name} should read:\n{options_table(method)}"
    arxiv = re.search(r"arXiv:(\S+)", method.paper or "")
    assert arxiv is None or arxiv[1] in found[1]


@pytest.fixture(scope="module")
def with_the_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of Limbeck that has the page's new method, as the page says it is added."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "limbeck", folder / "limbeck", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "limbeck" / "methods" / "match_logits.py").write_text(code, encoding="utf-8")
    config = folder / "limbeck" / "config.py"
    text = config.read_text(encoding="utf-8")
    for line, changed in (
        ("from limbeck.methods.kd import KnowledgeDistillation\n", ("kd", "match_logits")),
        ('    | Annotated[KnowledgeDistillation, Tag("kd")]\n', ('"kd"', '"match_logits"')),
    ):
        assert text.count(line) == 1
        text = text.replace(line, line + line.replace(*changed).replace("KnowledgeDistillation", "MatchLogits"))
    config.write_text(text, encoding="utf-8")
    return folder


def run_with(folder: Path, script: str) -> None:
    """A process of its own, whose ``limbeck`` is the folder's."""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_the_example_is_a_method_that_jobs_name_over_http(with_the_example: Path, tmp_path: Path) -> None:
    """Guards the page's promise as who follows it finds it: a module of torch at its top is a circle of imports, and
    would start no API."""
    run_with(
        with_the_example,
        f"""
import sys
from fastapi.testclient import TestClient
from api.app import create_app
from models.settings import Settings

assert "torch" not in sys.modules
with TestClient(create_app(Settings(data_dir={str(tmp_path)!r}))) as client:
    assert "match_logits" in client.get("/v1/methods").text
    job = {{"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings"}}
    found = client.post("/v1/jobs", json=job | {{"method": {{"type": "match_logits", "weight": 0.5}}}})
    assert found.status_code == 202, found.text
    assert found.json()["config"]["method"] == {{"type": "match_logits", "weight": 0.5}}, found.text
    refused = client.post("/v1/jobs", json=job | {{"method": {{"type": "match_logits", "weight": -1}}}})
    assert refused.json()["errors"][0]["pointer"] == "/method/weight", refused.text
""",
    )


def test_the_example_keeps_the_word_of_every_method(with_the_example: Path, tmp_path: Path) -> None:
    """Guards the tests that walk the union: they have to pass for a method that was added as the page says."""
    run_with(
        with_the_example,
        f"""
from pathlib import Path
from limbeck.methods.match_logits import MatchLogits
from tests.limbeck.contract import TEXT_TASKS, Ground, methods

assert MatchLogits in methods()
for kind in TEXT_TASKS:
    place = Path({str(tmp_path)!r}) / kind
    ground = Ground.of("bert", kind, place)
    assert ground.serves(MatchLogits()) == (kind in ("sequence_classification", "multi_label"))
    if ground.serves(MatchLogits()):
        ground.keep(MatchLogits(), place / "steps")
""",
    )
