"""DynaBERT: what a step learns from, and what the student is in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck import fewer_heads, preflight
from limbeck.batches import Batch, Collator
from limbeck.config import DistillConfig, Student
from limbeck.criterion import Criterion
from limbeck.elastic import Size
from limbeck.engine import distill
from limbeck.errors import Interrupted, InvalidConfig
from limbeck.gradients import Cut, backward
from limbeck.loop import train
from limbeck.methods.base import Models
from limbeck.methods.dynabert import DynaBERT
from limbeck.model_folder import model_facts
from limbeck.pruning import most_important
from limbeck.runtime import Predictor
from limbeck.shapes import resolve
from limbeck.sub_networks import SubNetworks
from tests.families import LABELS as NAMES
from tests.families import LENGTH, write_tiny
from tests.limbeck.bench import TASK, Bench, Recorder
from tests.limbeck.test_families import answers
from tests.tiny import write_tiny_bert, write_tiny_dataset

CPU = torch.device("cpu")

WIDTHS, DEEP = DynaBERT().parts()
TEXTS = ["Open a window with a button.", "Send an HTTP request.", "Close the socket."]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


def batch_of(bench: Bench, rows: Any = range(8)) -> Batch:
    batch: Batch = Collator(bench.train, 0, CPU)(np.asarray(rows))
    return replace(batch, teacher_logits=None)


def answers_to(model: Any, folder: Path, texts: list[str]) -> list[int]:
    coded = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found: list[int] = model.eval()(**coded).logits.argmax(dim=1).tolist()
    return found


def stages(bench: Bench, method: DynaBERT | None = None) -> tuple[SubNetworks, SubNetworks]:
    """Both objectives on one student, without dropout, the second built after the network has moved a little."""
    models = Models(bench.student(), bench.teacher, (1, 3), importance=bench.importance)
    chosen = method or DynaBERT()
    first = chosen.build(WIDTHS, models, Criterion(TASK))
    assert isinstance(first, SubNetworks)
    with torch.no_grad():
        for number, parameter in enumerate(first.module.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.05)
    second = chosen.build(DEEP, models, Criterion(TASK))
    assert isinstance(second, SubNetworks)
    first.module.eval()
    return first, second


def gradients(objective: SubNetworks, batch: Batch) -> dict[str, torch.Tensor]:
    objective.elastic.network.zero_grad()
    terms = objective.losses(batch, 0, 10)
    torch.stack([term.value * term.weight for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in objective.elastic.network.named_parameters()
    }


@pytest.mark.parametrize("heads", [2, 1])
def test_the_student_is_a_part_of_the_network_until_it_is_finished(bench: Bench, heads: int) -> None:
    """Guards against a student that is validated and saved as it was before the training."""
    wanted = bench.student()
    if heads == 1:
        fewer_heads.remove(wanted, most_important(bench.importance("heads")[[1, 3]], 1))
    method, models = DynaBERT(), Models(wanted, bench.teacher, (1, 3), importance=bench.importance)
    before = answers(models.student, bench.train)
    built = method.build(WIDTHS, models, Criterion(TASK))
    assert isinstance(built, SubNetworks)
    torch.testing.assert_close(answers(built.student, bench.train), before)  # the teacher's layers, sorted
    with torch.no_grad():
        for parameter in built.module.parameters():
            parameter.mul_(1.1)
    after = answers(built.student, bench.train)
    assert not torch.allclose(after, before, atol=1e-3)
    whole = built.elastic.network.eval()
    batch = batch_of(bench, range(len(bench.train)))
    torch.testing.assert_close(built.elastic.run(batch.inputs, Size((1, 3), 64, heads))[0].logits, after)
    student = method.finish(built)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    torch.testing.assert_close(answers(student, bench.train), after)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_gradient_is_the_sum_over_the_sub_networks(bench: Bench) -> None:
    """Guards against a network left in the state of its last size, and a term that is overwritten by another's."""
    for objective in stages(bench):
        batch, every = batch_of(bench), objective.sizes
        together = gradients(objective, batch)
        assert len(every) == (12 if objective.hidden_weight == 1 else 4)
        summed = {name: torch.zeros_like(value) for name, value in together.items()}
        for size in every:
            objective.sizes = [size]
            alone = gradients(objective, batch)
            for ending, length in (("intermediate.dense.weight", size.neurons), ("self.query.weight", 16 * size.heads)):
                within = [value for name, value in alone.items() if name.endswith(ending)]
                assert all(not value[length:].any() for value in within)
                assert any(value[:length].any() for value in within)
            summed = {name: summed[name] + value for name, value in alone.items()}
        for name, value in together.items():
            torch.testing.assert_close(value, summed[name], rtol=1e-4, atol=1e-6, msg=name)
        assert all(value.any() for name, value in together.items() if "key.bias" not in name), (
            "something learns nothing"
        )


def test_accumulated_gradients_equal_those_of_the_whole_batch(bench: Bench, tmp_path: Path) -> None:
    """Guards the units: states are means over tokens, of which the parts of a batch have unequal numbers."""
    run = bench.run(tmp_path, bench.phase(DynaBERT()))
    rows = np.array([0, 11, 22, 33, 44, 5, 16, 27, 38, 9])
    for objective in stages(bench):
        found = []
        for accumulation in (1, 4):
            objective.elastic.network.zero_grad()
            backward(objective, Collator(bench.train, 0, CPU), rows, Cut(accumulation), 0, 1, run)
            found.append([p.grad.clone() for p in objective.elastic.network.parameters() if p.grad is not None])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_what_each_stage_is_taught_by_whom_and_with_which_weight(bench: Bench) -> None:
    """By hand from plain models' outputs: the teacher at its full width, then the first stage's result at the same
    width; the hidden states of layers that stay against what they read when none is missing; .1, then 1."""
    first, second = stages(bench)
    batch = batch_of(bench)
    mask = batch.inputs["attention_mask"]

    def seen(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(**batch.inputs, output_hidden_states=True)

    def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return ((one - other).square().mean(dim=2) * mask).sum() / mask.sum()

    def answered(ours: Any, theirs: Any) -> torch.Tensor:
        wanted = theirs.logits.log_softmax(dim=1)
        return (wanted.exp() * (wanted - ours.logits.log_softmax(dim=1))).sum(dim=1).mean()

    narrow = Size((0, 1, 2, 3), 16, 1)
    first.sizes = [narrow]
    terms = first.losses(batch, 0, 10)
    ours, theirs = seen(first.elastic.cut(narrow)), seen(bench.teacher())
    pairs = zip(ours.hidden_states, theirs.hidden_states, strict=True)
    torch.testing.assert_close(terms["hidden_loss"].value.detach(), sum(apart(*pair) for pair in pairs))
    torch.testing.assert_close(terms["layers_4_heads_1_neurons_16_loss"].value.detach(), answered(ours, theirs))
    assert [term.weight for term in terms.values()] == [1.0, 0.1]

    small = Size((1, 3), 16, 1)
    second.sizes = [small]
    terms = second.losses(batch, 0, 10)
    ours, theirs = seen(second.elastic.cut(small)), seen(first.elastic.cut(narrow))
    matched = ((0, 0), (1, 3), (2, 4))  # embeddings; what layer 3 reads; what the last layer gives
    distance = sum(apart(ours.hidden_states[s], theirs.hidden_states[t]) for s, t in matched)
    torch.testing.assert_close(terms["hidden_loss"].value.detach(), distance)
    torch.testing.assert_close(terms["layers_2_heads_1_neurons_16_loss"].value.detach(), answered(ours, theirs))
    assert [term.weight for term in terms.values()] == [1.0, 1.0]


def test_the_second_stage_begins_where_the_first_ended_and_its_teacher_stands_still(
    bench: Bench, tmp_path: Path
) -> None:
    """Guards a second stage that begins from the teacher once more, and one whose teacher learns along."""
    first, second = stages(bench)
    assert second.elastic is first.elastic
    taught, moving = second.teacher.network.state_dict(), second.elastic.network.state_dict()
    assert all(torch.equal(value, moving[name]) for name, value in taught.items())
    kept = {name: value.clone() for name, value in taught.items()}
    phase = bench.phase(DynaBERT(width_share=0.25))
    assert phase.part_steps() == [3, 9]
    run = bench.run(tmp_path, phase, Recorder(), every=0)
    train(phase, run)
    tensors, facts = run.store.read_tensors("distilling-training")
    assert facts["position"]["part"] == 1
    learning = [name for name, value in tensors.items() if name.endswith(".exp_avg")]
    assert len(learning) == len(list(second.elastic.network.parameters()))
    network = {
        name.removeprefix("model.network."): v for name, v in tensors.items() if name.startswith("model.network")
    }
    widths = {name.removeprefix("model.widths."): v for name, v in tensors.items() if name.startswith("model.widths")}
    assert network.keys() == widths.keys() == kept.keys()
    assert not all(torch.equal(value, network[name]) for name, value in widths.items())
    second.train_mode()
    assert second.elastic.network.training
    assert not second.teacher.network.training
    assert not any(parameter.requires_grad for parameter in second.teacher.network.parameters())


def test_every_sub_network_is_validated_once_for_the_events(bench: Bench, tmp_path: Path) -> None:
    phase, recorder = bench.phase(DynaBERT()), Recorder()
    fitted = train(phase, bench.run(tmp_path, phase, recorder))
    ((message, data),) = [(text, data) for kind, text, data in recorder.events if kind == "variants.validated"]
    widths = ((1, 16), (1, 32), (2, 48), (2, 64))
    expected = {f"layers {depth} heads {heads} neurons {width}" for depth in (2, 3, 4) for heads, width in widths}
    assert data["scores"].keys() == expected
    assert all(name in message for name in expected)
    # The student is the sub-network of its size; what it had after the last step was said before as well.
    assert data["scores"]["layers 2 heads 2 neurons 64"] == fitted.history[-1]["accuracy"]


def test_a_job_cuts_the_size_that_it_names_and_resumes_exactly(tmp_path: Path) -> None:
    """Guards the whole way: importance from the state, checkpoints in both stages, the folder of plain transformers."""
    write_tiny_bert(tmp_path / "teacher", labels=("gui", "networking"))
    write_tiny_dataset(tmp_path / "data", rows=64)
    wanted = DistillConfig.parse(
        {
            "teacher": f"path:{tmp_path}/teacher",
            "dataset": f"path:{tmp_path}/data",
            "student": {"layers": 3, "prune": {"neurons": 0.4, "heads": 0.5}},
            "method": "dynabert",
            "training": {"epochs": 2, "batch_size": 16, "max_length": 32},
            "evaluation": {"hard_samples": False},
            "export": ["onnx"],
        }
    )
    whole = distill(wanted, tmp_path / "whole")
    loaded = fewer_heads.load(whole.student)
    assert (loaded.config.intermediate_size, loaded.config.num_hidden_layers) == (38, 3)
    assert loaded.base_model.get_submodule("encoder.layer.2.attention.self.key").weight.shape == (16, 32)
    assert whole.scorecard.exports[0].label_agreement == 1
    assert whole.scorecard.student.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    card = whole.scorecard
    assert {(one.layers, one.heads, one.neurons) for one in card.sub_networks} == {
        (layers, *width) for layers in (2, 3, 4) for width in ((1, 16), (1, 32), (1, 38), (2, 48), (2, 64))
    }
    (own,) = (one for one in card.sub_networks if one.student)
    assert (own.layers, own.heads, own.neurons, own.width) == (3, 1, 38, 38 / 64)
    assert own.parameters == card.student.parameters
    for one in card.sub_networks:  # what its options say, by the words that a job has for them
        assert one.options is not None
        named = Student.model_validate(one.options)
        shape = resolve(named, model_facts(tmp_path / "teacher"))
        assert (shape.depth, shape.intermediate_size) == (one.layers, one.neurons)
        assert (shape.kept_heads or shape.heads) == one.heads
    assert own.options == {"layers": [0, 1, 2], "prune": {"neurons": 0.40625, "heads": 0.5}}
    (largest,) = (one for one in card.sub_networks if one.flops == 1)
    assert (largest.layers, largest.neurons, largest.parameters) == (4, 64, card.teacher.parameters)
    # Per token and layer 2 · 32 · (4 · 16 · heads + 2 · neurons), and attention, half of it with one head of two.
    assert 3 / 4 * 1 / 2 < own.flops < 3 / 4 * (2 * 32 + 2 * 38) / (4 * 32 + 2 * 64)
    assert "## Other sizes" in (whole.student / "README.md").read_text(encoding="utf-8")
    assert card.baseline is not None
    attempts = 0
    while True:
        try:
            again = distill(wanted, tmp_path / "parts", callbacks=Recorder(stop_after=6), checkpoint_seconds=0)
            break
        except Interrupted:
            attempts += 1
    assert attempts > 3
    assert again.scorecard.sub_networks == card.sub_networks
    one, other = (load_file(result.student / "model.safetensors") for result in (whole, again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_student_with_all_heads_is_a_plain_one(tmp_path: Path) -> None:
    """Guards the folder that plain transformers reads: other sizes have fewer heads, the student has not."""
    write_tiny_bert(tmp_path / "teacher", labels=("gui", "networking"))
    write_tiny_dataset(tmp_path / "data", rows=64)
    document = {
        "teacher": f"path:{tmp_path}/teacher",
        "dataset": f"path:{tmp_path}/data",
        "student": {"layers": 2, "prune": 0.5},
        "method": {"type": "dynabert", "widths": [0.5, 1], "depths": [0.5]},
        "training": {"epochs": 1, "batch_size": 16, "max_length": 32},
        "evaluation": {"hard_samples": False, "baseline": False},
        "export": ["onnx"],
    }
    said = Recorder()
    result = distill(DistillConfig.parse(document), tmp_path / "job", callbacks=said)
    assert not [message for kind, message, _ in said.events if kind == "method.adapted"]
    found = {(one.layers, one.heads, one.neurons, one.student) for one in result.scorecard.sub_networks}
    assert found == {(2, 2, 64, False), (2, 1, 32, False), (2, 2, 32, True)}
    model = AutoModelForSequenceClassification.from_pretrained(result.student)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 32)
    labels = [model.config.id2label[i] for i in answers_to(model, result.student, TEXTS)]
    assert [one["label"] for one in Predictor.load(result.student, threads=1).predict(TEXTS)] == labels


def test_a_family_whose_heads_stay_says_so() -> None:
    """Guards against widths that are something else than a user was told."""
    (remark,) = DynaBERT().remarks(teacher="mpnet", student="mpnet")
    assert "All attention heads stay: transformers' code of mpnet" in remark
    assert not list(DynaBERT().remarks(teacher="bert", student="bert"))


@pytest.mark.parametrize(
    ("family", "student"),
    [
        ("albert", {"layers": 2}),
        ("modernbert", {"layers": 2}),
        ("bert", {"layers": 2, "hidden_size": 8}),
        ("bert", {"layers": 2, "heads": 1}),
        ("bert", {"layers": 2, "start": "random"}),
        ("bert", {"architecture": "bilstm"}),
        ("electra", {"layers": 2, "embedding_size": 8, "hidden_size": 8}),
    ],
)
def test_what_cannot_be_a_part_of_the_teacher_is_refused(family: str, student: dict[str, Any], tmp_path: Path) -> None:
    facts = model_facts(write_tiny(family, tmp_path))
    config = {"teacher": f"path:{tmp_path}", "dataset": "someone/data", "method": "dynabert", "student": student}
    wanted = DistillConfig.parse({**config, "training": {"max_length": LENGTH}})
    (found,) = preflight.check(wanted, teacher=facts, labels=NAMES)
    assert found.pointer == "/method"
    assert "only student.layers and the numbers of neurons and heads may differ" in found.detail


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": [0.5, 0.5]}, "name each share once"),
        ({"depths": []}, "at least 1"),
        ({"widths": [0.0, 1.0]}, "greater than 0"),
        ({"depths": [1.5]}, "less than or equal to 1"),
    ],
)
def test_shares_that_are_none_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        DistillConfig.parse({"teacher": "org/t", "dataset": "org/d", "method": {"type": "dynabert", **options}})
