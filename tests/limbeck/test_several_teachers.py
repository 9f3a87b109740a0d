"""Several teachers: what they answer together, whole jobs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from limbeck.batches import Collator, Encoded
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.engine import DistillResult, distill
from limbeck.ensemble import Ensemble
from limbeck.errors import Interrupted, InvalidConfig, InvalidModel, TeacherUnfit
from limbeck.latency import one_after_the_other
from limbeck.scorecard import Latency
from limbeck.soft_loss import BaseLoss, Correlation, DecoupledDistillation, JensenShannon, KullbackLeibler, ReverseKL
from limbeck.tasks.base import Task
from limbeck.tasks.embeddings import Embeddings
from limbeck.tasks.multi_label import MultiLabel
from limbeck.tasks.question_answering import QuestionAnswering
from limbeck.tasks.regression import Regression
from limbeck.tasks.sequence_classification import SequenceClassification
from tests.limbeck.bench import Bench, Recorder
from tests.limbeck.task_data import write
from tests.tiny import vocabulary, write_tiny_bert, write_tiny_dataset

LABELS = ("gui", "networking")
ONE = SequenceClassification()
LN3 = float(np.log(3))


def together(members: list[Tensor], temperature: float = 1.0, combine: Any = "mean", task: Task = ONE) -> Tensor:
    return Ensemble(len(members), combine).logits(task, members, temperature)


def test_the_mean_is_of_softened_distributions() -> None:
    """Guards against a mean of logits, and of distributions that were softened at another temperature. By hand:
    (3/4, 1/4) and (1/2, 1/2) are (5/8, 3/8) at T = 1; at T = 2 the first is (0.633975, 0.366025)."""
    members = [torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)]
    assert together(members).softmax(dim=1).tolist() == [pytest.approx([0.625, 0.375])]
    warm = together(members, temperature=2.0) / 2
    assert warm.softmax(dim=1).tolist() == [pytest.approx([0.5669873, 0.4330127])]
    student = torch.zeros(1, 2)
    at_one = KullbackLeibler().losses(ONE, student, together(members), torch.zeros(1), 1.0, 0.0)
    at_two = KullbackLeibler().losses(ONE, student, together(members, 2.0), torch.zeros(1), 2.0, 0.0)
    assert at_one.item() == pytest.approx(0.0315838, abs=1e-6)
    assert at_two.item() == pytest.approx(0.0360066, abs=1e-6)


def test_the_surer_teacher_counts_more() -> None:
    """Guards the weights, by hand: (3/4, 1/4) has 0.811278 of the entropy that two classes can have, so 0.188722
    against 1 of a teacher that is sure: 0.158761 and 0.841239 of the whole."""
    members = [torch.tensor([[LN3, 0.0]]), torch.tensor([[-30.0, 30.0]])]
    chances = together(members, combine="confidence").softmax(dim=1)
    assert chances.tolist() == [pytest.approx([0.158761 * 0.75, 1 - 0.158761 * 0.75], abs=1e-5)]
    unsure = together([torch.zeros(1, 2), torch.ones(1, 2)], combine="confidence").softmax(dim=1)
    assert unsure.tolist() == [pytest.approx([0.5, 0.5])]
    # The temperature softens the answers and not the confidence.
    warm = (together(members, 2.0, "confidence") / 2).softmax(dim=1)
    assert warm[0, 0].item() == pytest.approx(0.158761 * 0.6339746, abs=1e-5)


def test_yes_or_no_and_numbers_have_means_of_their_own() -> None:
    """Guards against a softmax over labels that do not exclude each other, and over a single number."""
    members = [torch.tensor([[LN3, 0.0]]), torch.tensor([[-LN3, 0.0]])]
    assert together(members, task=MultiLabel()).sigmoid().tolist() == [pytest.approx([0.5, 0.5])]
    # Of yes and no: entropies (0.811278 + 1) / 2 for both, hence alike; a teacher sure of both labels outweighs them.
    sure = [torch.tensor([[LN3, 0.0]]), torch.tensor([[30.0, 30.0]])]
    chances = together(sure, task=MultiLabel(), combine="confidence").sigmoid()
    weight = 0.094361 / 1.094361
    assert chances.tolist() == [pytest.approx([1 - weight * 0.25, 1 - weight * 0.5], abs=1e-5)]
    assert together([torch.tensor([[1.0]]), torch.tensor([[4.0]])], task=Regression()).tolist() == [[2.5]]


def test_of_vectors_it_is_their_mean_at_length_1() -> None:
    """Guards the loss of vectors, 2 - 2 · cosine, which a mean that is shorter than 1 would not be."""
    members = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])]
    assert together(members, task=Embeddings()).tolist() == [pytest.approx([2 / 5**0.5, 1 / 5**0.5])]


def _windows() -> Encoded:
    """One question in two windows, of 3 and of 5 tokens."""
    return Encoded(
        np.arange(8, dtype=np.int32),
        None,
        np.array([0, 3, 8]),
        np.array([[0, 0], [2, 3]]),
        per_token=True,
        owners=np.array([0, 0]),
        places=np.tile(np.array([[0, 1]], np.int32), (8, 1)),
    )


def test_start_and_end_have_the_mean_of_their_windows_tokens() -> None:
    """Guards against a softmax over start and end, and over the tokens of all windows; and against windows that are no
    longer comparable, of which the best span would be a matter of chance."""
    drawn = torch.Generator().manual_seed(0)
    one, other = (3 * torch.randn(8, 2, generator=drawn) for _ in range(2))
    ensemble, data, task = Ensemble(2), _windows(), QuestionAnswering()
    found = ensemble.over(task, torch.cat([one, other], dim=1), data)
    assert found.shape == (8, 2)
    for window in (slice(0, 3), slice(3, 8)):
        wanted = (one[window].softmax(dim=0) + other[window].softmax(dim=0)) / 2
        torch.testing.assert_close(found[window].softmax(dim=0), wanted)
        heights = (one[window].logsumexp(dim=0) + other[window].logsumexp(dim=0)) / 2
        torch.testing.assert_close(found[window].logsumexp(dim=0), heights)
    torch.testing.assert_close(ensemble.over(task, torch.cat([one, one], dim=1), data), one)


@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_padding_takes_no_part_in_what_windows_answer(combine: Any) -> None:
    """Guards a confidence that hangs on the longest window of a batch; by hand, the weights of a window's starts are
    by entropy over the logarithm of its own tokens."""
    drawn = torch.Generator().manual_seed(1)
    answers = torch.cat([4 * torch.randn(8, 2, generator=drawn), torch.randn(8, 2, generator=drawn)], dim=1)
    ensemble, data, task = Ensemble(2, combine), _windows(), QuestionAnswering()
    batch = Collator(data, 0, torch.device("cpu"), answers)(np.array([0, 1]))
    assert batch.teacher_logits is not None
    rows = Criterion(task, ensemble=ensemble).teacher_rows(batch)  # starts of both windows, then ends
    whole = ensemble.over(task, answers, data)
    for row, (window, column) in enumerate(((slice(0, 3), 0), (slice(3, 8), 0), (slice(0, 3), 1), (slice(3, 8), 1))):
        length = window.stop - window.start
        torch.testing.assert_close(rows[row, :length].softmax(dim=0), whole[window, column].softmax(dim=0))
        assert not rows[row].softmax(dim=0)[length:].any()
    if combine == "confidence":
        chances = [answers[:3, column].softmax(dim=0) for column in (0, 2)]
        sure = [1 + float((one * one.log()).sum()) / LN3 for one in chances]
        wanted = (sure[0] * chances[0] + sure[1] * chances[1]) / sum(sure)
        torch.testing.assert_close(rows[0, :3].softmax(dim=0), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "loss", [KullbackLeibler(), ReverseKL(), JensenShannon(), DecoupledDistillation(), Correlation()]
)
@pytest.mark.parametrize("combine", ["mean", "confidence"])
def test_equal_teachers_teach_as_one(tmp_path: Path, loss: BaseLoss, combine: Any) -> None:
    """Guards every loss that several teachers are allowed: what is exact for their distribution is exact for one's."""
    bench = Bench.make(tmp_path, rows=24)
    logits = torch.randn(len(bench.train), 3, generator=torch.Generator().manual_seed(1))
    student = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))

    def value(teachers: Tensor, ensemble: Ensemble | None) -> float:
        batch = Collator(bench.train, 0, torch.device("cpu"), teachers)(np.arange(8))
        return Criterion(ONE, loss, ensemble=ensemble).soft(student, batch, 3.0).value.item()

    three = torch.cat([logits, logits, logits], dim=1)
    assert value(three, Ensemble(3, combine)) == pytest.approx(value(logits, None), rel=1e-5)


def test_times_of_several_are_sums() -> None:
    """Guards the speed-up, which holds a student against all that its teachers take."""
    one = Latency(batch_size=32, p50_ms=2.0, p95_ms=3.0, examples_per_second=100.0)
    other = Latency(batch_size=32, p50_ms=5.0, p95_ms=9.0, examples_per_second=25.0)
    (found,) = one_after_the_other([(one,), (other,)])
    assert (found.p50_ms, found.p95_ms, found.examples_per_second) == (7.0, 12.0, 20.0)


def _other_reader(folder: Path) -> Path:
    """An encoder of another size whose tokenizer knows other words."""
    whole = write_tiny_bert(folder / "whole", layers=2, hidden=48, seed=5)
    pieces = [*vocabulary()[:5], *reversed(vocabulary()[5:])]
    own = folder / "own"
    shutil.copytree(whole, own)
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=True)
    tokenizer.save_pretrained(own)
    weights = load_file(own / "model.safetensors")
    table = weights["embeddings.word_embeddings.weight"]
    weights["embeddings.word_embeddings.weight"] = torch.cat([table[:5], table[5:].flip(0)]).contiguous()
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    return own


def _taught(encoder: Path, data: Path, folder: Path, layers: int) -> Path:
    """A fit teacher with its own head: what plain fine-tuning makes of the encoder."""
    document = {
        "teacher": {"source": f"path:{encoder}", "finetune": {"epochs": 4, "learning_rate": 3e-3}},
        "dataset": f"path:{data}",
        "student": layers,
        "method": "none",
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
    return distill(DistillConfig.parse(document), folder).student


def _with_labels_reversed(folder: Path) -> Path:
    """The same model whose head has its outputs in the other order."""
    config = json.loads((folder / "config.json").read_text())
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)][::-1]
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Place:
    """Two fit teachers: of other sizes, tokenizers, and orders of their labels."""

    def __init__(self, folder: Path) -> None:
        self.data = write_tiny_dataset(folder / "data", rows=96, labels=LABELS)
        self.first = _taught(write_tiny_bert(folder / "encoder"), self.data, folder / "first", 4)
        other = _taught(_other_reader(folder), self.data, folder / "second", 2)
        self.second = _with_labels_reversed(other)

    def config(self, **changes: Any) -> DistillConfig:
        document: dict[str, Any] = {
            "teacher": {"source": f"path:{self.first}", "more": [f"path:{self.second}"]},
            "dataset": f"path:{self.data}",
            "student": [1, 3],
            "method": "kd",
            "training": {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32},
            "export": [],
        }
        return DistillConfig.parse({**document, **changes})

    def teachers(self, **changes: Any) -> dict[str, Any]:
        return {"source": f"path:{self.first}", "more": [{"source": f"path:{self.second}", **changes}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="module")
def finished(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillResult, Recorder]:
    said = Recorder()
    return distill(place.config(), tmp_path_factory.mktemp("whole"), callbacks=said), said


def _chances(folder: Path, texts: list[str]) -> Tensor:
    """What plain transformers makes of a teacher's folder, in the order of :data:`LABELS`."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    coded = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**coded).logits.softmax(dim=1)
    return found[:, [model.config.label2id[label] for label in LABELS]]


def _split(place: Place, name: str) -> tuple[list[str], Tensor]:
    table = pyarrow.parquet.read_table(place.data / f"{name}.parquet").to_pydict()
    return table["text"], torch.tensor([LABELS.index(label) for label in table["label"]])


def test_the_scorecards_teacher_is_all_of_them_together(place: Place, finished: tuple[DistillResult, Recorder]) -> None:
    """Guards tokens, label orders and the mean on the whole way: plain transformers gets the accuracies claimed for
    each teacher and for both, and the losses that the table of hard samples has for the teacher."""
    result, said = finished
    card = result.scorecard
    texts, truth = _split(place, "test")
    each = [_chances(folder, texts) for folder in (place.first, place.second)]

    def accuracy(chances: Tensor) -> float:
        return float((chances.argmax(dim=1) == truth).float().mean())

    assert [one.name for one in card.teachers] == [f"path:{place.first}", f"path:{place.second}"]
    assert [one.metrics["accuracy"].value for one in card.teachers] == pytest.approx([accuracy(one) for one in each])
    assert card.teacher.metrics["accuracy"].value == pytest.approx(accuracy(sum(each) / 2))
    assert card.retention.value == pytest.approx(
        card.student.metrics["accuracy"].value / card.teacher.metrics["accuracy"].value
    )
    assert card.teacher.parameters == sum(one.parameters for one in card.teachers)
    assert card.teacher.layers == 6
    for place_, latency in enumerate(card.teacher.latency):
        assert latency.p50_ms == pytest.approx(sum(one.latency[place_].p50_ms for one in card.teachers))
    (path,) = (one for one in result.hard_samples if one.suffix == ".parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for split in ("train", "validation"):
        texts, truth = _split(place, split)
        mean = sum(_chances(folder, texts) for folder in (place.first, place.second)) / 2
        wanted = {text: -float(row[label].log()) for text, row, label in zip(texts, mean, truth, strict=True)}
        found = {row["text"]: row["teacher_loss"] for row in rows if row["split"] == split}
        assert found == pytest.approx(wanted, abs=1e-4)
    kinds = [kind for kind, _, _ in said.events]
    assert kinds.count("teacher.evaluated") == kinds.count("teacher.tested") == 2
    assert kinds.count("teachers.combined") == kinds.count("teachers.tested") == 1
    message = next(message for kind, message, _ in said.events if kind == "teachers.combined")
    assert "The 2 teachers together" in message
    assert "inside a teacher" not in message
    assert [one["source"] for one in result.provenance["more_teachers"]] == [f"path:{place.second}"]
    assert result.more_teachers[0].sha256 == result.provenance["more_teachers"][0]["sha256"] != result.teacher.sha256
    assert f"`path:{place.first}` and `path:{place.second}`" in (result.student / "README.md").read_text()


def test_the_student_learns_from_both(place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path) -> None:
    """Guards against a second teacher that is paid for and not listened to; the baseline has none and stays."""
    alone = distill(place.config(teacher=f"path:{place.first}"), tmp_path / "alone")
    for folder, same in (("student", False), ("baseline", True)):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (finished[0], alone))
        assert all(torch.equal(value, other[name]) for name, value in one.items()) is same


@pytest.mark.parametrize("stop_after", [6, 14, 22, 30])
def test_an_interrupted_job_ends_with_the_same_weights(
    place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path, stop_after: int
) -> None:
    """Guards exact resume in every phase that several teachers have more of."""
    with pytest.raises(Interrupted):
        distill(place.config(), tmp_path / "job", callbacks=Recorder(stop_after=stop_after), checkpoint_seconds=0)
    again = distill(place.config(), tmp_path / "job", checkpoint_seconds=0)
    assert again.scorecard.teacher.metrics == finished[0].scorecard.teacher.metrics
    assert again.scorecard.difficulty == finished[0].scorecard.difficulty
    for folder in ("student", "baseline"):
        one, other = (load_file(getattr(found, folder) / "model.safetensors") for found in (finished[0], again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "noise", "kind": "random"}},
        {"method": "auto"},
        {"method": "fastbert", "student": {}},
        {"training": {"epochs": 1, "learning_rate": 3e-3, "sample_weighting": "curriculum", "max_length": 32}},
        {"training": {"epochs": 1, "learning_rate": 3e-3, "sample_weighting": "disagreement", "max_length": 32}},
    ],
    ids=["noise", "auto", "fastbert", "curriculum", "disagreement"],
)
def test_methods_and_weightings_take_what_all_answer(place: Place, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Guards what reads the teacher's answers in another place than ``kd`` does, and the label-free confidence."""
    said, teachers = Recorder(), {**place.teachers(), "combine": "confidence"}
    wanted = place.config(teacher=teachers, evaluation={"baseline": False}, **changes)
    result = distill(wanted, tmp_path / "job", callbacks=said)
    assert len(result.scorecard.teachers) == 2
    message = next(message for kind, message, _ in said.events if kind == "teachers.combined")
    assert "by how sure each is" in message
    assert ("inside a teacher is the first one's" in message) is (changes.get("method") == "auto")


def test_a_bare_encoder_among_them_is_fine_tuned_with_the_first_ones_tokenizer(place: Place, tmp_path: Path) -> None:
    """Guards the second teacher's own training, and tokens that are shared with a table of another size."""
    encoder = write_tiny_bert(tmp_path / "encoder", layers=2, hidden=48, seed=7)
    teacher = {
        "source": f"path:{place.first}",
        "more": [{"source": f"path:{encoder}", "finetune": {"epochs": 3, "learning_rate": 3e-3}}],
    }
    said = Recorder()
    result = distill(place.config(teacher=teacher), tmp_path / "job", callbacks=said)
    assert [one.finetuned for one in (result.teacher, *result.more_teachers)] == [False, True]
    assert "Teacher 2, epoch 3 of 3" in " ".join(message for _, message, _ in said.events)
    assert [one.layers for one in result.scorecard.teachers] == [4, 2]


def _refused(place: Place, tmp_path: Path, **changes: Any) -> dict[str, str]:
    with pytest.raises((InvalidConfig, InvalidModel)) as caught:
        distill(place.config(**changes), tmp_path / "job")
    return {one.pointer: one.detail for one in caught.value.problems}


def test_what_several_teachers_cannot_do_is_refused(place: Place, tmp_path: Path) -> None:
    """Guards against hours of training from answers that mean nothing."""
    for method, student in (("theseus", [1, 3]), ("dynabert", [1, 3]), ("none", [1, 3])):
        problems = _refused(place, tmp_path, method=method, student=student)
        assert "take auto or kd" in problems["/teacher/more"]
    assert "options" in _refused(place, tmp_path, method={"type": "fastbert", "alpha": 0}, student={})["/teacher/more"]
    for loss in ("annealing", "logit_standardisation"):
        problems = _refused(place, tmp_path, training={"loss": loss, "max_length": 32})
        assert "allowed: kl, reverse_kl, jsd, dkd, dist" in problems["/training/loss"]
    problems = _refused(place, tmp_path, training={"augmentation": "sentence_shuffle", "max_length": 32})
    assert "is not the first teacher's" in problems["/teacher/more/0/source"]
    missing = {"source": f"path:{place.first}", "more": ["path:/nowhere"]}
    assert _refused(place, tmp_path, teacher=missing) == {"/teacher/more/0/source": "there is no folder /nowhere"}
    problems = _refused(place, tmp_path, training={"max_length": 200})
    assert set(problems) == {"/training/max_length"}


def test_a_teacher_whose_tokenizer_is_no_good_is_named(place: Place, tmp_path: Path) -> None:
    """Guards against a search among several teachers for the one that is meant."""
    file = shutil.copytree(place.first, tmp_path / "other") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 5}))
    teacher = {"source": f"path:{place.first}", "more": [f"path:{file.parent}"]}
    assert "pads with the token 0" in _refused(place, tmp_path, teacher=teacher)["/teacher/more/0/source"]


def _without_tokenizer(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "special_tokens*"))
    return copy


def test_a_model_without_a_vocabulary_is_named(place: Place, tmp_path: Path) -> None:
    """Guards against hours of training on nothing but unknown tokens: transformers makes a tokenizer of no words."""
    bare = _without_tokenizer(place.second, tmp_path / "bare")
    for changes, pointer in (
        ({"teacher": f"path:{bare}", "student": 1}, "/teacher/source"),
        ({"teacher": {"source": f"path:{place.first}", "more": [f"path:{bare}"]}}, "/teacher/more/0/source"),
        ({"teacher": f"path:{place.first}", "student": {"source": f"path:{bare}"}}, "/student/source"),
    ):
        problems = _refused(place, tmp_path, **changes)
        assert list(problems) == [pointer]
        assert "tokenizer knows no word" in problems[pointer]
        assert "tokenizer.json or vocab.txt" in problems[pointer]


def test_weights_that_do_not_load_are_named_before_any_teacher_is_tuned(place: Place, tmp_path: Path) -> None:
    """Guards against the first teacher's hours of fine-tuning for a second one that was never any good."""
    file = shutil.copytree(place.second, tmp_path / "broken") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 8}))
    encoder, said = write_tiny_bert(tmp_path / "encoder"), Recorder()
    teacher = {"source": f"path:{encoder}", "more": [f"path:{file.parent}"]}
    with pytest.raises(InvalidModel, match="weights could not be loaded") as caught:
        distill(place.config(teacher=teacher), tmp_path / "job", callbacks=said)
    assert [one.pointer for one in caught.value.problems] == ["/teacher/more/0/source"]
    assert not any(kind == "epoch.finished" for kind, _, _ in said.events)


def test_two_ranks_ask_all_teachers(place: Place, finished: tuple[DistillResult, Recorder], tmp_path: Path) -> None:
    """Guards against ranks that wait for each other for ever: each model's answers are shared work, in one order."""
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32, "devices": 2}
    said = Recorder()
    result = distill(place.config(training=training), tmp_path / "job", callbacks=said)
    assert result.scorecard.teacher.metrics == finished[0].scorecard.teacher.metrics
    assert [kind for kind, _, _ in said.events].count("teachers.combined") == 1


def test_each_teacher_has_to_have_the_labels_and_to_be_fit(place: Place, tmp_path: Path) -> None:
    """Guards against a mean with a teacher of other labels, or with one that knows nothing."""
    other = write_tiny_bert(tmp_path / "other", labels=("numbers", "testing"))
    teacher = {"source": f"path:{place.first}", "more": [f"path:{other}"]}
    assert "answers with numbers, testing" in _refused(place, tmp_path, teacher=teacher)["/teacher/more/0/source"]
    unfit = write_tiny_bert(tmp_path / "unfit", labels=LABELS)
    weights = load_file(unfit / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([50.0, 0.0])
    save_file(weights, unfit / "model.safetensors", metadata={"format": "pt"})
    teacher = {"source": f"path:{place.first}", "more": [f"path:{unfit}"]}
    with pytest.raises(TeacherUnfit, match="The teacher 2's accuracy on validation is 50"):
        distill(place.config(teacher=teacher), tmp_path / "unfit-job")


@pytest.mark.parametrize("task", ["multi_label", "regression", "token_classification", "question_answering"])
def test_tasks_whose_answers_have_a_mean_are_served(tmp_path: Path, task: str) -> None:
    """Guards each task's rows of logits beside those of another teacher, in training and in the hard samples."""
    data = write(task, tmp_path / "data")
    tune = {"epochs": 12, "learning_rate": 5e-3}
    more = {"source": f"path:{write_tiny_bert(tmp_path / 'more', seed=1)}", "finetune": tune}
    document = {
        "teacher": {"source": f"path:{write_tiny_bert(tmp_path / 'one')}", "finetune": tune, "more": [more]},
        "dataset": f"path:{data}",
        "student": 1,
        "method": "kd",
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "max_length": 32},
        "evaluation": {"baseline": False},
        "export": [],
    }
    result = distill(DistillConfig.parse(document), tmp_path / "job")
    assert len(result.scorecard.teachers) == 2
    assert result.scorecard.teacher.metrics != result.scorecard.teachers[0].metrics


@pytest.mark.parametrize(
    ("teacher", "pointer", "detail"),
    [
        ({"source": "org/a", "combine": "confidence"}, "/teacher", "name the others in more"),
        ({"source": "org/a", "more": ["org/b", "org/a"]}, "/teacher", "name each teacher once"),
        (
            {"source": "org/a", "more": [{"source": "builtin:none"}]},
            "/teacher/more/0/source",
            "no such built-in teacher",
        ),
        ({"source": "org/a", "more": ["b"], "combine": "sum"}, "/teacher/combine", "confidence"),
    ],
)
def test_a_configuration_is_refused_at_its_field(teacher: dict[str, Any], pointer: str, detail: str) -> None:
    """Guards the pointers of a list within the teacher."""
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"teacher": teacher, "dataset": "org/data"})
    assert {one.pointer for one in caught.value.problems} == {pointer}
    assert detail in caught.value.problems[0].detail


def test_a_rerun_expects_each_teacher_as_it_was(place: Place, tmp_path: Path) -> None:
    """Guards a repeat from a second teacher whose name stays while its weights change."""
    expected = {"teacher/more/0": "0" * 64}
    with pytest.raises(InvalidModel, match="no longer the one that the first run had") as caught:
        distill(place.config(), tmp_path / "job", expected=expected)
    assert caught.value.problems[0].pointer == "/teacher/more/0/source"
