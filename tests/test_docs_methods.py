"""docs/methods.md: every method has its section, its options are those of the schema, and its example works."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

import limbeck.config
from limbeck.methods.base import Method
from tests.limbeck.bench import Bench

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
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


def test_the_example_of_a_new_method_is_short_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the promise that a method is one small file: the one on the page learns for two steps."""
    from limbeck.loop import train

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    (tmp_path / "match_logits.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("match_logits").MatchLogits()
    bench = Bench.make(tmp_path / "bench", rows=16)
    phase = bench.phase(method, epochs=1)
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    after = train(phase, bench.run(tmp_path / "run", phase)).model.state_dict()
    assert any(not (after[name] == value).all() for name, value in before.items())
