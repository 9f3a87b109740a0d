"""``limbeck predict --file --bad-lines skip``: a file of many lines is not given up for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.runtime import Predictor
from tests.exported import texts
from tests.limbeck.scripted_api import Api
from tests.limbeck.scripted_cli import refusing, run

BAD = [
    ("no json", "no json", "is not JSON"),
    ('{"txt": "a"}', {"txt": "a"}, "is neither"),
    ('"caf\udce9"', "caf\ufffd", "is not UTF-8"),
    ('{"text": "a", "text_pair": "b"}', {"text": "a", "text_pair": "b"}, "cannot be asked: /text_pair"),
    ("[" * 100_000, "[" * 100_000, "is not JSON"),
    ('{"text": "\\ud800"}', {"text": "\ud800"}, "holds half of a surrogate pair"),
]


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_each_line_has_its_answer_or_what_is_wrong_with_it(
    api: Api, exported_student: Path, tmp_path: Path, local: bool
) -> None:
    api.routes["POST /v1/models/mdl_9/predict"] = refusing
    good = [f"{text} {number}" for number, text in enumerate(texts(48))]
    lines, expected = [], []
    for number, text in enumerate(good):
        lines += [json.dumps(text), ""]  # with a blank line behind it
        expected.append((text, None))
        if number % 8 == 7:
            line, given, why = BAD[number // 8]
            lines.append(line)
            expected.append((given, f"Line {len(lines)} {why}"))
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    asked = ("--local", str(exported_student)) if local else ("mdl_9",)
    result = run(api, "predict", *asked, "--file", str(file), "--bad-lines", "skip")
    assert result.exit_code == 3
    assert "6 of 54 lines could not be read or asked" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["input"] for one in found] == [given for given, _ in expected]
    for one, (_, why) in zip(found, expected, strict=True):
        assert ("prediction" in one) == (why is None)
        assert why is None or one["error"].startswith(why)
    labels = [one["prediction"]["label"] for one in found if "prediction" in one]
    assert labels == ([one["label"] for one in Predictor.load(exported_student).predict(good)] if local else good)


def test_a_line_that_is_too_large_for_the_server_is_skipped_alone(api: Api) -> None:
    def label(body: bytes) -> tuple[int, Any]:
        if len(body) > 1024**2:
            return 413, {"code": "too_large", "detail": "The body has more than 1 MiB."}
        return 200, [{"label": "good", "score": 1.0} for _ in json.loads(body)["inputs"]]

    api.routes["POST /v1/models/mdl_9/predict"] = label
    given = "\n".join(json.dumps(one) for one in ("a", "b" * 1_500_000, "c"))
    result = run(api, "predict", "mdl_9", "--file", "-", "--bad-lines", "skip", stdin=given)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one.get("error") for one in found] == [None, "Line 2 cannot be asked: The body has more than 1 MiB.", None]


def test_an_option_that_nobody_can_take_ends_it_all_the_same(api: Api, exported_student: Path) -> None:
    """Guards against a million errors that all say the same, and against an option without a file to read."""
    asked = ("predict", "--local", str(exported_student), "--file", "-", "--bad-lines", "skip")
    result = run(api, *asked, "--speed", "0.5", stdin='"a"\n"b"\n')
    assert (result.exit_code, result.stdout) == (2, "")
    assert "speed" in result.stderr
    without = run(api, "predict", "mdl_9", "a", "--bad-lines", "skip")
    assert (without.exit_code, api.requests) == (2, [])
    fine = run(api, *asked, stdin='"a"\n')
    assert (fine.exit_code, fine.stderr) == (0, "")
