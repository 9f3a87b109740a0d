"""The README's commands, run as written, with a smaller teacher and data set in the place of the built-in ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from limbeck.client import Client
from tests.e2e.stack import Stack
from tests.tiny import write_tiny_bert, write_tiny_dataset

README = Path(__file__).parents[2] / "README.md"
BUILTIN = '{"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "method": "kd"}'


def curl_commands() -> str:
    """The README's block of shell that submits."""
    return next(block for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL) if "curl" in block)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_readmes_commands_do_what_it_says(stack: Stack, tmp_path: Path) -> None:
    """Guards against a first screen that no longer works."""
    with Client(stack.url) as client:
        teacher = client.upload_model(write_tiny_bert(tmp_path / "teacher", layers=2))
        dataset = client.upload_dataset(write_tiny_dataset(tmp_path / "data", rows=120))
    small = {
        "teacher": {"source": teacher.reference, "finetune": {"epochs": 10, "learning_rate": 3e-3}},
        "dataset": dataset.reference,
        "student": 1,
        "method": "kd",
        "training": {"epochs": 1, "learning_rate": 3e-3},
        "evaluation": {"baseline": False},
    }
    commands = curl_commands()
    assert BUILTIN in commands
    assert "http://127.0.0.1:8000" in commands
    script = commands.replace(BUILTIN, json.dumps(small)).replace("http://127.0.0.1:8000", stack.url)
    command = ["bash", "-euo", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "event: job.succeeded" in result.stdout
    with tarfile.open(tmp_path / "student.tar.gz") as archive:
        assert any(name.endswith("/onnx/model.onnx") for name in archive.getnames())
    answer = json.loads(result.stdout.splitlines()[-1])
    prediction = answer[0] if isinstance(answer, list) else answer
    assert prediction["label"] in {"gui", "networking"}
