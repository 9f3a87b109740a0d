"""Early exit: the branches, who leaves when, the same in torch and in ONNX, and a job from method to answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from limbeck import exits
from limbeck.batches import Batch, Collator
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.engine import DistillResult, distill
from limbeck.errors import InvalidInput, InvalidModel
from limbeck.exit_graph import _Folded, write_exit_graphs
from limbeck.methods.base import Models
from limbeck.methods.fastbert import FastBert
from limbeck.model_folder import ModelFacts
from limbeck.modelcard import model_card
from limbeck.phase import share_steps
from limbeck.preflight import check
from limbeck.runtime import Predictor
from limbeck.runtime.exits import ExitSession, found_graphs, uncertainty
from limbeck.runtime.session import Session
from tests.exported import texts
from tests.limbeck.bench import TASK, Bench
from tests.tiny import write_tiny_bert, write_tiny_dataset


def model_of(family: str, classes: int) -> Any:
    from transformers import DistilBertConfig, ElectraConfig, RobertaConfig

    common = {"vocab_size": 100, "max_position_embeddings": 42, "num_labels": classes, "initializer_range": 0.5}
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    configs = {
        "bert": lambda: BertConfig(**common, **sizes),
        "roberta": lambda: RobertaConfig(**common, **sizes, type_vocab_size=1, pad_token_id=1),
        "electra": lambda: ElectraConfig(**common, **sizes, embedding_size=8),
        "distilbert": lambda: DistilBertConfig(**common, dim=16, n_layers=4, n_heads=2, hidden_dim=32),
    }
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(configs[family]()).eval()
    exits.attach(model)
    for branch in exits.branches_of(model) or ():
        branch.output.weight.data.mul_(10)  # answers of all degrees of certainty
    return model.requires_grad_(False)


def batch_of(model: Any, count: int = 24, longest: int = 20) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, longest + 1, (count,), generator=draw)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(5, 100, (count, longest), generator=draw)
    pad = int(model.config.pad_token_id or 0)
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}


def test_uncertainty_is_worked_out_by_hand() -> None:
    """Guards the base of the logarithm: three classes at 1/2, 1/4, 1/4 have 1.0397 nats of ln 3 = 1.0986. With ln 2,
    as for two classes, it would be above 1 and nobody would leave at speed 1."""
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32))
    expected = [1.0397208 / 1.0986123, 1.0]
    assert uncertainty(logits) == pytest.approx(expected, abs=1e-6)
    assert exits.uncertainty(torch.from_numpy(logits)).tolist() == pytest.approx(expected, abs=1e-6)
    two = np.array([[0.0, 0.0], [500.0, 0.0], [0.0, np.log(3)]], dtype=np.float32)
    assert uncertainty(two) == pytest.approx([1, 0, 0.8112781], abs=1e-6)
    assert exits.uncertainty(torch.from_numpy(two)).tolist() == pytest.approx([1, 0, 0.8112781], abs=1e-6)
    many = np.random.default_rng(0).normal(scale=3, size=(100, 7)).astype(np.float32)
    each = [uncertainty(row[None])[0] for row in many]
    assert uncertainty(many) == pytest.approx(each, abs=1e-5), "many numbers at once are the same as few"


@torch.inference_mode()
def test_a_branch_is_attention_over_what_is_no_padding() -> None:
    """Guards pooling over the wrong axis and a mask that is not used, in the branch and in its folded form: torch's own
    attention, given the same matrices, answers the same, and what stands behind the padding changes nothing."""
    torch.manual_seed(0)
    branch = exits.Branch(16, 5)
    states = torch.randn(6, 9, 16)
    mask = (torch.arange(9) < torch.tensor([9, 1, 4, 2, 9, 7])[:, None]).long()
    whole = nn.MultiheadAttention(128, 2, batch_first=True)
    whole.in_proj_weight.copy_(torch.cat([branch.queries.weight, branch.keys.weight, branch.values.weight]))
    whole.in_proj_bias.copy_(torch.cat([branch.queries.bias, torch.randn(128), branch.values.bias]))
    whole.out_proj.weight.copy_(torch.eye(128))
    whole.out_proj.bias.zero_()
    narrow = torch.tanh(branch.narrow(states))
    mixed, _ = whole(narrow, narrow, narrow, key_padding_mask=mask == 0)
    expected = branch.output(torch.tanh(branch.dense(mixed[:, 0])))
    for found in (branch(states, mask), _Folded(branch)(states, mask)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    noisy = torch.where(mask[:, :, None] == 1, states, torch.randn_like(states) * 100)
    torch.testing.assert_close(branch(noisy, mask), branch(states, mask))


@pytest.mark.parametrize(("family", "classes"), [("bert", 2), ("roberta", 5), ("electra", 3), ("distilbert", 4)])
def test_texts_leave_alike_in_torch_and_in_onnx(family: str, classes: int, tmp_path: Path) -> None:
    """Guards the index map, the mask that has to shrink with the states, and answers of zeros for those who were never
    sure: each text has the answer that its layer gives when nobody leaves, and the graphs agree about all of it."""
    model = model_of(family, classes)
    inputs = batch_of(model)
    answers = exits.every_answer(model, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(answers[-1], model(**inputs).logits)
    write_exit_graphs(model, tmp_path)
    session = ExitSession(found_graphs(tmp_path), 0.5, pad_id=int(model.config.pad_token_id), threads=1)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    sure = torch.stack([exits.uncertainty(one) for one in answers[:-1]])
    middle = float((sure.min(dim=0).values.sort().values[11:13]).mean())  # so that half of the texts never leave
    seen = set()
    for speed in (0.0, middle, 1.0):
        leaving = (sure <= speed) & (speed > 0)
        expected = torch.where(leaving.any(dim=0), leaving.int().argmax(dim=0), 3)
        found = exits.answer(model, inputs, speed)
        assert found.layers.tolist() == (expected + 1).tolist()
        torch.testing.assert_close(found.logits, answers[expected, torch.arange(24)], atol=1e-5, rtol=1e-4)
        logits, layers = session.answer(feeds, speed)
        assert layers.tolist() == found.layers.tolist()
        np.testing.assert_allclose(logits, found.logits.numpy(), atol=1e-4)
        seen |= set(layers.tolist())
    assert {1, 4} < seen, "the middle speed lets some leave in between, or this test shows nothing"


def test_where_nobody_can_leave_no_branch_is_computed(tmp_path: Path) -> None:
    """Guards speed 0, which must not cost what it has no use for: states as ever, and logits that nobody made."""
    model = model_of("bert", 3)
    write_exit_graphs(model, tmp_path)
    first, second, *_ = (Session(file, threads=1) for file in found_graphs(tmp_path))
    feeds = {name: value.numpy() for name, value in batch_of(model).items()}
    feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    for graph in (first, second):
        states, logits = graph.run({**feeds, "asked": np.array(True)})
        same, nothing = graph.run({**feeds, "asked": np.array(False)})
        np.testing.assert_array_equal(same, states)
        assert np.abs(logits).max() > 0
        assert nothing.tolist() == [[0, 0, 0]]
        feeds["states"] = states


def test_rows_really_leave() -> None:
    """Guards the seed's own mistake: code that computes all layers for all texts and picks answers afterwards."""
    model, rows = model_of("bert", 3), []
    layers = model.base_model.encoder.layer
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    found = exits.answer(model, batch_of(model), 0.5)
    assert rows == [int((found.layers >= depth).sum()) for depth in range(1, 1 + len(rows))]
    rows.clear()
    exits.answer(model, batch_of(model), 1.0)
    assert rows == [24]
    assert not any(layer._forward_hooks for layer in layers), "nothing stays behind in the model"


def test_speed_zero_is_all_layers_however_sure() -> None:
    """Guards the plain answers: an entropy of exactly 0, which large logits have in float32, is not above 0."""
    sure = torch.tensor([[0.0, 800.0]])
    assert exits.leaves(sure, 0.001).tolist() == [True]
    assert exits.leaves(sure, 0).tolist() == [False]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"), rows=16)


def first_batch(bench: Bench) -> Batch:
    return Collator(bench.train, 0, torch.device("cpu"))(np.arange(8))


def test_while_the_branches_learn_the_model_stands_still(bench: Bench) -> None:
    """Guards dropout that is left on, gradients into the frozen model, and a loss other than batchmean KL at T = 1."""
    method, student = FastBert(), bench.student()
    part = method.parts()[1]
    objective = method.build(part, Models(student, bench.teacher), Criterion(TASK))
    student.train()
    objective.train_mode()
    batch = first_batch(bench)
    once, twice = (objective.losses(batch, 0, 1) for _ in range(2))
    assert [term.value.item() for term in once.values()] == [term.value.item() for term in twice.values()]
    assert not any(module.training for module in student.modules())
    torch.autograd.backward([term.value for term in once.values()])
    with_gradient = {name for name, value in student.named_parameters() if value.grad is not None}
    assert with_gradient == {name for name, _ in student.named_parameters() if exits.is_branch(name)}
    branch, head = exits.every_answer(student, batch.inputs).double()
    p, q = head.softmax(dim=1), branch.softmax(dim=1)
    expected = (p * (p.log() - q.log())).sum() / 8
    assert list(once) == ["layer_1_loss"]
    assert float(once["layer_1_loss"].value.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_a_floor_that_no_speed_keeps_is_not_said_to_be_kept(job: Job) -> None:
    """Guards who set the floor: the card named it as kept, at a speed that does not."""
    card = job.result.scorecard
    assert card.exits is not None
    assert card.exits.kept
    assert "the highest that keeps" in model_card(card, "student", teacher="t", dataset="d")
    missed = card.exits.model_copy(update={"speed": 0.0, "floor": 0.999, "validation": 0.8, "validation_whole": 0.8})
    assert not missed.kept
    said = model_card(card.model_copy(update={"exits": missed}), "student", teacher="t", dataset="d")
    assert "is 0: no speed keeps 99.9% on validation, where all layers have 80.0%" in said
    assert "the highest that keeps" not in said


def test_every_part_gets_a_step() -> None:
    """Guards a student whose branches were never trained, or are not there at all, after a very short job."""
    assert share_steps(FastBert(), 2) == [1, 1]
    assert share_steps(FastBert(branch_share=0.01), 10) == [9, 1]
    assert share_steps(FastBert(), 1) == [0, 1]


def test_what_cannot_leave_early_is_refused_before_training() -> None:
    """Guards hours of training towards a student that has nowhere to leave, and layers that cannot be run alone."""
    facts = ModelFacts(
        architecture="BertModel",
        model_type="bert",
        layers=6,
        hidden_size=32,
        labels=None,
        has_head=False,
        parameters=1,
        bytes=4,
        max_positions=128,
        heads=2,
        intermediate_size=64,
    )
    plain = {"teacher": "org/t", "dataset": "org/d", "method": "fastbert"}
    whole = DistillConfig.parse(plain)
    assert FastBert().student(whole.student, 6).layers == 6
    assert FastBert().student(DistillConfig.parse({**plain, "student": 3}).student, 6).layers == 3

    def found(config: DistillConfig, teacher: ModelFacts) -> list[str]:
        return [one.pointer for one in check(config, teacher=teacher, labels=("a", "b"))]

    assert found(whole, facts) == []
    assert found(DistillConfig.parse({**plain, "student": 1}), facts) == ["/student/layers"]
    assert found(whole, replace(facts, model_type="modernbert")) == ["/method"]
    assert found(DistillConfig.parse({**plain, "student": {"architecture": "bilstm"}}), facts)[0] == "/method"


def test_questions_of_several_speeds_are_answered_as_alone(exported_exits_student: Path) -> None:
    """Guards batches across requests: the speed of one must not be that of another."""
    student = Predictor.load(exported_exits_student, threads=1)
    asked = [(text, speed) for text in texts(6) for speed in (0, None, 1)]
    together = student.answers([student.question(text, speed=speed) for text, speed in asked])
    alone = [student.predict(text, speed=speed) for text, speed in asked]
    for (found,), (expected,) in zip(together, alone, strict=True):
        assert found["label"] == expected["label"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert alone[0] != alone[2]


@dataclass(frozen=True)
class Job:
    result: DistillResult
    texts: list[str]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A whole job of the method, exported."""
    folder = tmp_path_factory.mktemp("job")
    write_tiny_bert(folder / "teacher")
    write_tiny_dataset(folder / "data", rows=96, labels=("gui", "networking"))
    config = DistillConfig.parse(
        {
            "teacher": {"source": f"path:{folder / 'teacher'}", "finetune": {"epochs": 2, "learning_rate": 3e-3}},
            "dataset": {"source": f"path:{folder / 'data'}"},
            "method": {"type": "fastbert", "max_loss": 20},
            "training": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
            "evaluation": {"baseline": False},
        }
    )
    result = distill(config, folder / "work")
    return Job(result, pyarrow.parquet.read_table(folder / "data" / "test.parquet")["text"].to_pylist())


def test_the_card_shows_the_curve(job: Job) -> None:
    card = job.result.scorecard
    assert card.exits is not None
    assert card.exits.layers == card.student.layers == 4, "all of the teacher's layers, as nobody said otherwise"
    first, last = card.exits.curve[0], card.exits.curve[-1]
    assert first.metric == card.student.metrics["accuracy"]
    assert (first.speed, first.mean_layers, first.flops) == (0, 4, pytest.approx(1))
    assert last.mean_layers < 4
    assert card.exits.speed in [point.speed for point in card.exits.curve]
    assert card.exits.validation >= card.exits.floor == pytest.approx(card.exits.validation_whole - 0.2)
    for point in card.exits.curve:
        assert sum(point.leaving) == pytest.approx(1)
        assert [one.batch_size for one in point.latency] == [1, 32]
        assert point.mean_layers == pytest.approx(sum(n * share for n, share in enumerate(point.leaving, start=1)))
    text = (job.result.student / "README.md").read_text()
    assert "## Early exit" in text
    assert f"**{card.exits.speed:g}**" in text


def test_the_student_answers_at_the_speed_it_is_asked_for(job: Job) -> None:
    """Guards the default, which is the calibrated one and not 0, and speed 0, which is the plain student."""
    student, card = Predictor.load(job.result.student, threads=1), job.result.scorecard.exits
    assert card is not None
    assert student.speed == card.speed
    np.testing.assert_array_equal(student.logits(job.texts), student.logits(job.texts, speed=card.speed))
    plain = AutoModelForSequenceClassification.from_pretrained(job.result.student)
    assert not any(exits.is_branch(name) for name in plain.state_dict())
    from transformers import pipeline

    scores = pipeline("text-classification", model=str(job.result.student))(job.texts, truncation=True)
    answers = student.predict(job.texts, speed=0)
    assert [one["label"] for one in answers] == [one["label"] for one in scores]
    assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in scores], abs=1e-4)
    first = student.logits(job.texts, speed=1)
    assert np.abs(first - student.logits(job.texts, speed=0)).max() > 1e-2


@pytest.mark.parametrize("speed", [-0.1, 1.5, True, "fast", float("nan")])
def test_a_wrong_speed_is_refused(job: Job, speed: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Predictor.load(job.result.student, threads=1).predict("a", speed=speed)
    assert [one.pointer for one in caught.value.problems] == ["/parameters/speed"]


def test_a_student_without_exits_takes_no_speed(exported_student: Path) -> None:
    """Guards a user who believes that a plain student became faster."""
    student = Predictor.load(exported_student, threads=1)
    assert student.speed is None
    for call in (lambda: student.predict("a", speed=0.5), lambda: student.logits(["a"], speed=0.5)):
        with pytest.raises(InvalidInput, match=r"/parameters/speed.*no early exits"):
            call()


def test_the_loader_in_the_folder_needs_no_limbeck(job: Job) -> None:
    """Guards the promise that a student can be used in torch by whoever has only its folder."""
    script = (
        "import sys, json, torch; sys.modules['limbeck'] = None\n"
        f"sys.path.insert(0, {str(job.result.student)!r})\n"
        "from early_exit import answer, load\nfrom transformers import AutoTokenizer\n"
        f"folder = {str(job.result.student)!r}\n"
        f"coded = AutoTokenizer.from_pretrained(folder)({job.texts[:8]!r}, padding=True, truncation=True, "
        "return_tensors='pt')\n"
        "print(json.dumps(answer(load(folder), coded, 0.5).logits.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr
    expected = Predictor.load(job.result.student, threads=1).logits(job.texts[:8], speed=0.5)
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, atol=1e-4)


def test_a_missing_layer_is_named(job: Job, tmp_path: Path) -> None:
    """Guards a folder that was copied in part from answering with fewer layers."""
    for number in (1, 2, 4):
        (tmp_path / f"onnx/exits/layer_{number}.onnx").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"onnx/exits/layer_{number}.onnx").write_bytes(b"x")
    with pytest.raises(InvalidModel, match="layer_3"):
        found_graphs(tmp_path)


def test_a_missing_last_layer_is_named(exported_exits_student: Path, tmp_path: Path) -> None:
    """Guards a folder that lacks the end: the last branch answered in the head's place, and at speed 0 nothing but
    zeros."""
    student = shutil.copytree(exported_exits_student, tmp_path / "student")
    (student / "onnx/exits/layer_3.onnx").unlink()
    with pytest.raises(InvalidModel, match=r"layer_3\.onnx is missing"):
        Predictor.load(student, threads=1)
