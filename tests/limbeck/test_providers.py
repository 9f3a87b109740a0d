"""What computes is what was asked for, or an error that says what there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from limbeck.errors import InvalidInput
from limbeck.runtime import Predictor
from limbeck.runtime.encoding import pad
from limbeck.runtime.providers import CPU, choose, installed, that_branch, with_threads
from limbeck.runtime.session import Session
from models.settings import Settings
from tests.exported import texts


def test_the_default_is_what_is_installed_with_the_cpu_behind_it() -> None:
    """Guards against operators that a GPU's provider lacks having nobody to compute them."""
    chosen = choose(None)
    assert chosen == choose(()) == choose(installed())
    assert chosen[-1] == CPU
    assert set(chosen) <= set(onnxruntime.get_available_providers())
    assert choose(["cpu"]) == choose(["cpu", "cpu"]) == (CPU,)


@pytest.mark.parametrize(
    ("wanted", "pointer", "said"),
    [
        (["cpu", "tpu"], "/providers/1", "found 'tpu'; allowed: cuda, openvino, cpu"),
        (
            ["openvino"],
            "/providers/0",
            "openvino is not in this ONNX Runtime, which has .*onnxruntime-openvino brings it",
        ),
    ],
)
def test_what_is_not_there_is_named(wanted: list[str], pointer: str, said: str, exported_student: Path) -> None:
    """Guards against a fallback to the CPU that nobody notices but by its speed."""
    if wanted[0] in installed() and "tpu" not in wanted:
        pytest.skip(f"{wanted[0]} is installed")
    with pytest.raises(InvalidInput, match=said) as refused:
        Predictor.load(exported_student, providers=wanted)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_a_student_answers_on_the_provider_that_was_named(exported_student: Path) -> None:
    session = Session(exported_student / "onnx/model.onnx", threads=1, providers=["cpu"])
    assert session.providers == (CPU,)
    named = Predictor.load(exported_student, threads=1, providers=["cpu"])
    assert named.predict(texts(3)) == Predictor.load(exported_student, threads=1).predict(texts(3))


def test_openvino_computes_with_the_threads_of_the_call() -> None:
    """Guards against sessions that each take all cores: a text took twice the CPU time."""
    openvino = "OpenVINOExecutionProvider"
    assert with_threads([openvino, CPU], 1) == [(openvino, {"num_of_threads": "1"}), (CPU, {})]
    assert with_threads([openvino, CPU], None) == [(openvino, {}), (CPU, {})]


def test_openvino_leaves_graphs_with_branches_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against an early exit's zeros in place of logits: what its first call said, where nobody could leave."""
    built = ["CUDAExecutionProvider", "OpenVINOExecutionProvider", CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    assert that_branch(None) == that_branch(("cuda", "openvino", "cpu")) == ["cuda", "cpu"]
    assert that_branch(["openvino"]) == that_branch(["openvino", "cpu"]) == ["cpu"]
    built.remove("OpenVINOExecutionProvider")
    with pytest.raises(InvalidInput, match="openvino is not in this"):
        that_branch(["openvino"])


@pytest.mark.skipif("openvino" not in installed(), reason="onnxruntime-openvino is not installed")
@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_openvino_answers_as_the_cpu_does(name: str, exported_student: Path) -> None:
    feeds = pad(Predictor.load(exported_student, threads=1)._encoder.encode(texts(12)), 0)
    path = exported_student / "onnx" / name
    session = Session(path, threads=1, providers=["openvino"])
    assert session.providers[0] == "OpenVINOExecutionProvider"
    np.testing.assert_allclose(
        session(feeds),
        Session(path, threads=1, providers=["cpu"])(feeds),
        atol=1e-5 if name == "model.onnx" else 0.02,
    )


@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_what_is_left_unfused_changes_nothing_but_time(name: str, exported_student: Path) -> None:
    """Guards against other logits for the sake of the quicker layer norm. int8 rounds what a sum in another order moves
    over a step."""
    path = exported_student / "onnx" / name
    plain = onnxruntime.InferenceSession(str(path), providers=[CPU])
    student = Predictor.load(exported_student, threads=1)
    rows = student._encoder.encode(texts(12))
    feeds = pad(rows, 0)
    (expected,) = plain.run(["logits"], {one.name: feeds[one.name] for one in plain.get_inputs()})
    found = Session(path, threads=1, providers=["cpu"])(feeds)
    np.testing.assert_allclose(found, expected, atol=1e-5 if name == "model.onnx" else 0.02)


def test_the_setting_takes_names_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_PREDICT_PROVIDERS", "cuda, cpu")
    assert Settings().predict_providers == ("cuda", "cpu")
    monkeypatch.setenv("LIMBECK_PREDICT_PROVIDERS", "")
    assert Settings().predict_providers == ()
    monkeypatch.setenv("LIMBECK_PREDICT_PROVIDERS", "gpu")
    with pytest.raises(ValidationError, match="predict_providers"):
        Settings()
