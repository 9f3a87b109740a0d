"""The model card that goes out with a student."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from limbeck import fewer_heads
from limbeck.modelcard import model_card
from limbeck.scorecard import (
    DatasetCard,
    Estimate,
    ExitPoint,
    ExitsCard,
    ExportCard,
    Hardware,
    Latency,
    ModelCard,
    Scorecard,
    SubNetwork,
    Verdict,
)
from tests.exported import LABELS
from tests.tiny import write_tiny_bert

LATENCY = tuple(Latency(batch_size=n, p50_ms=1.5 * n, p95_ms=2.0 * n, examples_per_second=600) for n in (1, 32))


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.02, high=value + 0.02)


def model(name: str, layers: int, accuracy: float) -> ModelCard:
    metrics = {"accuracy": estimate(accuracy), "macro_f1": estimate(accuracy - 0.01)}
    return ModelCard(
        name=name,
        layers=layers,
        hidden_size=32,
        parameters=1000 * layers,
        bytes=4000 * layers,
        metrics=metrics,
        validation={"accuracy": accuracy},
        latency=LATENCY,
    )


def scorecard(exports: tuple[ExportCard, ...], *, gap_recovery: Estimate | None, note: str | None) -> Scorecard:
    return Scorecard(
        task="sequence_classification",
        method="kd",
        main_metric="accuracy",
        seed=42,
        dataset=DatasetCard(
            source="org/set", sha256="0123456789abcdef", train=900, validation=50, test=150, labels=LABELS, majority=0.4
        ),
        hardware=Hardware(
            cpu="a processor",
            threads=2,
            device="cpu",
            precision="float32",
            torch="2",
            transformers="5",
            onnxruntime="1",
        ),
        teacher=model("teacher", 4, 0.9),
        student=model("student", 2, 0.88),
        baseline=model("baseline", 2, 0.85),
        retention=estimate(0.978),
        gap_recovery=gap_recovery,
        gap_recovery_note=note,
        speedup={"1": 2.0},
        compression=2.0,
        exports=tuple(card.model_copy(update={"latency": LATENCY}) for card in exports),
        minutes={},
        verdict=Verdict(passed=False, reasons=("The student keeps 97.8% of its teacher; asked for: 99.0%.",)),
    )


def code(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_the_card_shows_what_was_measured(exported: tuple[Path, tuple[ExportCard, ...]]) -> None:
    """Guards against a card that shows good figures alone: intervals, baseline, gate and notes have to be on it."""
    found = scorecard(exported[1], gap_recovery=estimate(0.6), note="Read with care: the gap is small.")
    card = model_card(found, "student", teacher="org/teacher", dataset="org/set")
    for shown in (
        "# A 2-layer student of `org/teacher`",
        "base_model: org/teacher",
        "datasets: [org/set]",
        "| teacher | 4 | 4,000 | 90.0% (88.0 to 92.0) |",
        "| **student** (this) | 2 | 2,000 | 88.0% (86.0 to 90.0) |",
        "| baseline | 2 | 2,000 | 85.0% (83.0 to 87.0) |",
        "97.8% (95.8 to 99.8)",
        "With torch and transformers, where the folder has `model.safetensors`:",
        "60.0% (58.0 to 62.0)",
        "Read with care: the gap is small.",
        "gate was missed: The student keeps 97.8%",
        "common label gets 40.0% right",
        "| onnx-int8 | `onnx/model_int8.onnx` |",
        "not calibrated",
    ):
        assert shown in card


def test_the_card_says_what_was_done_to_the_data() -> None:
    """Guards figures on a validation split in the place of test, or on texts that train has, which nobody would see."""
    found = scorecard((), gap_recovery=None, note=None)
    assert "Of these data" not in model_card(found, "student", teacher="org/teacher", dataset="org/set")
    noted = found.dataset.model_copy(update={"notes": ("The validation split is reported on.", "Another note.")})
    card = model_card(found.model_copy(update={"dataset": noted}), "student", teacher="org/teacher", dataset="org/set")
    assert "\n\nOf these data: The validation split is reported on. Another note.\n" in card


def test_names_that_are_not_the_hubs_make_no_links() -> None:
    """Guards against front matter that is no YAML, or that points at somebody else's model."""
    card = model_card(
        scorecard((), gap_recovery=None, note=None), "student", teacher="builtin:minilm-l6", dataset="dataset:ds_1"
    )
    front = card.split("---")[1]
    assert "base_model" not in front
    assert "datasets" not in front
    assert "Gap recovery" not in card


def test_the_baselines_card_says_what_it_is(exported: tuple[Path, tuple[ExportCard, ...]]) -> None:
    """Guards against the twin being taken for the student, or promising files that it does not have."""
    found = scorecard(exported[1], gap_recovery=None, note=None)
    card = model_card(found, "baseline", teacher="org/teacher", dataset="org/set")
    assert "trained without the teacher's answers" in card
    assert "| **baseline** (this) |" in card
    assert "onnx/" not in card
    assert len(code(card)) == 1


@pytest.mark.parametrize("pair", [False, True])
def test_the_code_on_the_card_runs(
    pair: bool,
    exported: tuple[Path, tuple[ExportCard, ...]],
    exported_pair_student: Path,
) -> None:
    """Guards against a card whose examples were never tried, the first thing that a new user does."""
    folder = exported_pair_student if pair else exported[0]
    found = scorecard(exported[1][:1], gap_recovery=None, note=None)
    blocks = code(model_card(found, "student", teacher="org/teacher", dataset="org/set", pair=pair))
    assert len(blocks) == 3
    printed = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.replace("this/folder", str(folder)), "card", "exec"), {})
        printed.append(out.getvalue())
    assert all(any(label in text for label in LABELS) for text in printed[:2])
    assert printed[2].startswith("[[")


def test_the_code_for_vectors_of_a_student_with_fewer_heads_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against ``AutoModel`` on such a card, which refuses the folder, as sentence-transformers does."""
    encoder = AutoModel.from_pretrained(write_tiny_bert(tmp_path))
    fewer_heads.remove(encoder, [torch.tensor([0])] * 4)
    encoder.save_pretrained(tmp_path)
    fewer_heads.save_loader(tmp_path)
    found = scorecard((), gap_recovery=None, note=None).model_copy(update={"task": "embeddings"})
    assert "sentence-transformers" in model_card(found, "student", teacher="org/teacher", dataset="org/set")
    pruned = found.model_copy(update={"student": found.student.model_copy(update={"kept_heads": 1})})
    card = model_card(pruned, "student", teacher="org/teacher", dataset="org/set")
    assert "sentence-transformers" not in card
    monkeypatch.syspath_prepend(tmp_path)
    (block,) = code(card)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block.replace("this/folder", str(tmp_path)), "card", "exec"), {})
    monkeypatch.delitem(sys.modules, "fewer_heads")
    assert out.getvalue().startswith("tensor([[")


def test_figures_that_are_no_shares_are_shown_as_they_are() -> None:
    """Guards a regression's card, where a correlation of 0.9 is no 90 per cent, and an error of 0.9 even less."""
    metrics = {"spearman": estimate(0.9), "rmse": estimate(1.25)}
    plain = scorecard((), gap_recovery=None, note=None)
    models = {name: getattr(plain, name).model_copy(update={"metrics": metrics}) for name in ("teacher", "student")}
    dataset = plain.dataset.model_copy(update={"labels": (), "majority": 0.0})
    changes = {"task": "regression", "main_metric": "spearman", "dataset": dataset, "baseline": None, **models}
    card = model_card(plain.model_copy(update=changes), "student", teacher="org/teacher", dataset="org/set")
    assert "| **student** (this) | 2 | 2,000 | 0.900 (0.880 to 0.920) | 1.250 (1.230 to 1.270) | 1.5 | 48.0 |" in card
    assert "Always answering the mean has 0.000." in card
    assert "Retention (spearman of the student / of the teacher): 97.8%" in card


def test_the_card_shows_each_forms_own_figures() -> None:
    """Guards columns that have changed places."""
    form = ExportCard(
        format="onnx-int8",
        bytes=12_340_000,
        examples=150,
        max_logit_difference=0.25,
        label_agreement=0.9871,
        metrics={"accuracy": estimate(0.87), "macro_f1": estimate(0.8)},
        latency=(),
    )
    card = model_card(
        scorecard((form,), gap_recovery=None, note=None), "student", teacher="org/teacher", dataset="org/set"
    )
    head = "| form | file | MB | same answer as torch | logits within | accuracy | macro F1 | ms for 1 | ms for 32 |"
    row = "| onnx-int8 | `onnx/model_int8.onnx` | 12.3 | 98.7% | 0.2 | 87.0% (85.0 to 89.0) | 80.0% (78.0 to 82.0) |"
    assert "compared with it on 150 of the test examples:\n\n" + head in card
    assert f"{row} 1.5 | 48.0 |" in card


def test_the_card_shows_early_exits_and_sizes_by_what_they_save() -> None:
    """Guards ratios that stand on their heads: three times as fast is 3.00, not 0.33."""
    slow, quick = (Latency(batch_size=1, p50_ms=1, p95_ms=1, examples_per_second=each) for each in (100, 300))
    point = ExitPoint(speed=0.3, metric=estimate(0.8), mean_layers=1.5, leaving=(), flops=0.4, latency=(quick,))
    exits = ExitsCard(
        layers=4, speed=0.3, floor=0.795, validation=0.8, validation_whole=0.85, plain_latency=(slow,), curve=(point,)
    )
    size = SubNetwork(
        layers=3,
        neurons=1024,
        width=0.5,
        heads=6,
        parameters=5_000_000,
        validation=0.82,
        flops=0.25,
        options={"layers": 3},
        student=False,
    )
    found = scorecard((), gap_recovery=None, note=None).model_copy(update={"exits": exits, "sub_networks": (size,)})
    card = model_card(found, "student", teacher="org/teacher", dataset="org/set")
    assert "| **0.3** | 80.0% (78.0 to 82.0) | 1.50 | 40% | 3.00 × |" in card
    assert "is 0.3: the highest that keeps 79.5% on validation, where all layers have 85.0%" in card
    assert '| 3 | 6 | 1,024 | 5,000,000 | 25% | 82.0% | `{"layers": 3}` |' in card
