"""Heads that are pruned away: which ones, that the rest answers as before, and whole jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from limbeck import fewer_heads
from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidConfig, InvalidModel
from limbeck.pruning import head_importance
from limbeck.runtime import Predictor
from limbeck.scorecard import ModelCard
from tests.families import FAMILIES, write_tiny
from tests.limbeck.bench import Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")
ABLE = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")


def masked(model: Any, kept: list[torch.Tensor]) -> None:
    """Silence all heads but these by columns of zeros behind them: the definition of being without them."""
    for block, heads in zip(fewer_heads._attentions(model), kept, strict=True):
        behind: Any = model.get_submodule(block[-1])
        size = model.config.hidden_size // model.config.num_attention_heads
        gone = torch.ones(model.config.num_attention_heads, dtype=torch.bool)
        gone[heads] = False
        with torch.no_grad():
            behind.weight[:, gone.repeat_interleave(size)] = 0


@pytest.mark.parametrize("family", ABLE)
def test_removed_heads_are_as_silenced_ones(tmp_path: Path, family: str) -> None:
    """Guards rows and columns: a wrong one changes answers a little and fails nowhere."""
    folder = write_tiny(family, tmp_path, labels=LABELS)
    one, other = (AutoModelForSequenceClassification.from_pretrained(folder).eval() for _ in range(2))
    heads = one.config.num_attention_heads
    kept = [torch.tensor([layer % heads]) for layer in range(one.config.num_hidden_layers)]
    inputs = {"input_ids": torch.tensor([[2, 9, 11, 3], [2, 12, 3, 0]]), "attention_mask": torch.ones(2, 4).long()}
    inputs["attention_mask"][1, 3] = 0
    masked(one, kept)
    fewer_heads.remove(other, kept)
    with torch.inference_mode():
        wanted, found = one(**inputs).logits, other(**inputs).logits
    assert torch.allclose(wanted, found, atol=1e-5)
    assert sum(p.numel() for p in other.parameters()) < sum(p.numel() for p in one.parameters())
    assert fewer_heads.attention_width(other.config) == other.config.hidden_size // heads


def test_every_layer_keeps_as_many(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(write_tiny_bert(tmp_path, labels=LABELS))
    with pytest.raises(ValueError, match=r"\[1, 2, 1, 1\]"):
        fewer_heads.remove(model, [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1])])


def test_a_heads_importance_is_what_its_absence_costs_to_the_first_order(tmp_path: Path) -> None:
    """Guards the measure: scaling a head's answer by 1 - ε changes the loss of one text by ε times it, which is held
    against the difference of two losses."""
    bench = Bench.make(tmp_path, rows=24)
    from limbeck.batches import Collator
    from limbeck.criterion import Criterion
    from limbeck.tasks.sequence_classification import SequenceClassification

    model, criterion = bench.teacher().double(), Criterion(SequenceClassification())

    def loss(one: Any, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(criterion.logits(one(**batch.inputs)), batch.labels)

    texts = [Collator(bench.train, 0, torch.device("cpu"))(np.array([row])) for row in range(3)]
    found = head_importance(model, texts, loss)
    assert found.shape == (4, 2)
    size, step = 16, 1e-4
    for layer, head in ((0, 1), (3, 0)):
        behind: Any = model.get_submodule(f"bert.encoder.layer.{layer}.attention.output.dense")
        own, wanted = behind.weight.detach().clone(), 0.0
        for batch in texts:
            losses = []
            for factor in (1 + step, 1 - step):
                with torch.no_grad():
                    behind.weight.copy_(own)
                    behind.weight[:, head * size : (head + 1) * size] *= factor
                    losses.append(float(loss(model, batch)))
            wanted += abs(losses[0] - losses[1]) / (2 * step)
            behind.weight.data.copy_(own)
        assert found[layer, head].item() == pytest.approx(wanted, rel=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_tiny_bert(folder / "teacher", heads=4)
    write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
    return folder


def config(place: Path, prune: dict[str, Any], **changes: Any) -> DistillConfig:
    document: dict[str, Any] = {
        "teacher": {"source": f"path:{place}/teacher", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
        "dataset": f"path:{place}/data",
        "student": {"layers": [1, 3], "prune": prune},
        "method": "kd",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
        "export": ["onnx"],
    }
    return DistillConfig.parse({**document, **changes})


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillResult, Recorder]:
    said = Recorder()
    wanted = config(place, {"heads": 0.5, "neurons": 0.25})
    return distill(wanted, tmp_path_factory.mktemp("job"), callbacks=said), said


def answered(folder: Path, texts: list[str], model: Any) -> list[str]:
    coded = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return [LABELS[i] for i in model(**coded).logits.argmax(dim=1)]


TEXTS = ["Open a window with a button.", "Send an HTTP request.", "Close the socket.", "Draw a circle"]


def test_the_folder_and_its_graph_have_fewer_heads(finished: tuple[DistillResult, Recorder]) -> None:
    """Guards against masking under another name: weights and graph have to be smaller, and to answer alike."""
    result, said = finished
    card = result.scorecard
    assert card.baseline is not None
    assert (card.student.kept_heads, card.baseline.kept_heads, card.teacher.kept_heads) == (2, 2, None)
    assert card.exports[0].label_agreement == 1
    weights = load_file(result.student / "model.safetensors")
    assert weights["bert.encoder.layer.0.attention.self.query.weight"].shape == (16, 32)
    assert weights["bert.encoder.layer.1.attention.output.dense.weight"].shape == (32, 16)
    assert weights["bert.encoder.layer.1.intermediate.dense.weight"].shape == (48, 32)
    assert sum(value.numel() for value in weights.values()) == card.student.parameters
    graph = onnx.load(result.student / "onnx" / "model.onnx").graph
    heads = [
        attribute.i
        for node in graph.node
        if node.op_type == "Attention"
        for attribute in node.attribute
        if attribute.name == "num_heads"
    ]
    assert heads == [2, 2]
    model = fewer_heads.load(result.student)
    answers = Predictor.load(result.student, threads=1).predict(TEXTS)
    assert [answer["label"] for answer in answers] == answered(result.student, TEXTS, model)
    pruned = [message for kind, message, _ in said.events if kind == "student.pruned"]
    assert ["2 stay in each layer" in one for one in pruned] == [False, True]


def test_the_loader_beside_the_weights_needs_no_limbeck(finished: tuple[DistillResult, Recorder]) -> None:
    """Guards the file that travels along, and the words of the model card; plain transformers must not load half."""
    student = finished[0].student
    assert "from fewer_heads import load" in (student / "README.md").read_text(encoding="utf-8")
    code = (
        "import sys; from fewer_heads import load; model = load('.'); "
        "assert not any(name.split('.')[0] == 'limbeck' for name in sys.modules); print(model.config.kept_heads)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=student, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "2"
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForSequenceClassification.from_pretrained(student)
    assert AutoConfig.from_pretrained(student).num_attention_heads == 4


def test_a_pruned_student_ends_the_same_when_it_is_stopped_on_the_way(
    place: Path, finished: tuple[DistillResult, Recorder], tmp_path: Path
) -> None:
    """Guards the start of a resumed run: other heads would make the baseline another model."""
    wanted = config(place, {"heads": 0.5, "neurons": 0.25})
    with pytest.raises(Interrupted):
        distill(wanted, tmp_path / "parts", callbacks=Recorder(stop_after=30), checkpoint_seconds=0)
    again = distill(wanted, tmp_path / "parts", checkpoint_seconds=0)
    for folder in ("student", "baseline"):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (finished[0], again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", ["auto", "minilm", "patient"])
def test_methods_that_look_inside_serve_it(place: Path, tmp_path: Path, method: str) -> None:
    """Guards relations between projections of other widths, in a vocabulary of its own, without neurons pruned."""
    student = {"layers": [1, 3], "prune": {"heads": 0.25}, "vocabulary": "trimmed"}
    wanted = config(place, {}, student=student, method=method, export=[], evaluation={"baseline": False})
    result = distill(wanted, tmp_path / "job")
    assert result.scorecard.student.kept_heads == 3
    model = fewer_heads.load(result.student)
    assert set(answered(result.student, TEXTS, model)) <= set(LABELS)


def test_what_cannot_be_pruned_is_refused(place: Path, tmp_path: Path) -> None:
    """Guards the reasons, each before anything is trained."""

    def refused(prune: dict[str, Any], **changes: Any) -> dict[str, str]:
        with pytest.raises(InvalidConfig) as caught:
            distill(config(place, prune, **changes), tmp_path / "job")
        return {one.pointer: one.detail for one in caught.value.problems}

    assert "0.1 of 4 heads, which is none" in refused({"heads": 0.1})["/student/prune/heads"]
    assert "neurons, of heads, or of both" in refused({})["/student/prune"]
    for method in ("fastbert", "theseus", "tinybert"):
        assert "needs of the student" in refused({"heads": 0.5}, method=method)["/method"]
    albert = write_tiny("albert", tmp_path / "albert")
    assert "type 'albert'" in refused({"heads": 0.5}, teacher=f"path:{albert}")["/student/prune/heads"]
    narrow = {"prune": {"heads": 0.5}, "hidden_size": 16}
    assert "hidden_size does not go with prune" in refused({}, student=narrow)["/student"]
    assert set(FAMILIES) > set(ABLE)


def test_it_is_no_teacher(place: Path, finished: tuple[DistillResult, Recorder], tmp_path: Path) -> None:
    """Guards against a message on shapes of tensors, or a teacher whose weights start at random."""
    wanted = config(place, {"heads": 0.5}, teacher=f"path:{finished[0].student}", student=1)
    with pytest.raises(InvalidModel, match="layers keep 2 of 4 heads"):
        distill(wanted, tmp_path / "job")


def test_the_scorecards_field_is_empty_for_all_others() -> None:
    """Guards scorecards that were stored before there was such a thing."""
    assert ModelCard.model_fields["kept_heads"].default is None
