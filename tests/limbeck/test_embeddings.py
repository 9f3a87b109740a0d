"""Embeddings: losses and pooling by hand, whole jobs with scores and without, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from limbeck import data, preflight
from limbeck.batches import Collator, Encoded
from limbeck.checkpoint import CheckpointStore
from limbeck.client import packing
from limbeck.config import Columns, Dataset, DistillConfig
from limbeck.criterion import Criterion
from limbeck.data.ingest import ingest
from limbeck.engine import DistillResult, distill
from limbeck.errors import Diverged, Interrupted, InvalidDataset, InvalidInput
from limbeck.losses import cosine_losses, vector_losses
from limbeck.model_folder import model_facts
from limbeck.pruning import neuron_importance
from limbeck.runtime import Predictor
from limbeck.sources import builtin_minilm
from limbeck.students import Blueprint
from limbeck.tasks._pooling import PooledEncoder, sentence_vectors
from limbeck.tasks.embeddings import Embeddings, TextEmbeddings
from limbeck.vocabulary import Vocabulary
from tests.limbeck.bench import Recorder
from tests.limbeck.task_data import texts
from tests.tiny import write_tiny_bert

LENGTH = 32
CHINESE = (
    ("今天的天气很好", "今天天气不错", 4.5),
    ("他在图书馆看书", "他在看书", 3.5),
    ("股票市场大幅下跌", "我喜欢吃苹果", 0.0),
    ("火车晚点了两个小时", "火车晚点两小时", 5.0),
)


def test_losses_by_hand() -> None:
    """Guards against a mean over the width, which would make the loss of wide teachers vanish beside others."""
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert vector_losses(one, other).item() == pytest.approx(2 - 2 * 0.6)
    assert vector_losses(one, -one).item() == 4
    assert cosine_losses(one, other, torch.tensor([0.25])).item() == pytest.approx(0.35**2)
    with pytest.raises(ValueError, match="same shape"):
        vector_losses(one, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="one score"):
        cosine_losses(one, other, torch.zeros(2))
    with pytest.raises(Diverged):
        vector_losses(one, torch.tensor([[float("nan"), 0.0]]))


def test_pooling_by_hand() -> None:
    """Guards against padding in the mean: the third token is none."""
    states = torch.tensor([[[1.0, 2.0], [5.0, 6.0], [100.0, -100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert sentence_vectors(states, mask)[0].tolist() == pytest.approx([0.6, 0.8])  # (3, 4) of length 5
    first = sentence_vectors(states, mask, "cls")[0].tolist()
    assert first == pytest.approx([1 / 5**0.5, 2 / 5**0.5])


def test_each_row_of_a_pair_has_the_loss_of_the_pair() -> None:
    """Guards against rows that are compared with those of another pair."""
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 1]]), dim=-1)
    found = Embeddings().hard_losses(vectors, torch.tensor([0.5, 0.5, 0.75, 0.75]))
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.0625, 0.0625])
    assert TextEmbeddings().hard_losses(vectors, torch.zeros(4)).tolist() == [0, 0, 0, 0]


def test_pairs_stay_together_in_batches_and_parts() -> None:
    """Guards the hard loss, which would compare a text with a stranger where a batch cuts a pair."""
    lengths = np.random.default_rng(0).integers(3, 20, 26)
    split = Encoded(
        np.zeros(lengths.sum(), np.int32),
        None,
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        np.zeros(26, np.float32),
        together=2,
    )
    assert (split.examples, split.groups) == (13, 13)
    batches = split.batches(4, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(26))
    for batch in batches:
        for part in (batch, *split.parts(batch, 3)):
            assert (part[0::2] % 2 == 0).all()
            assert (part[1::2] == part[0::2] + 1).all()
    taken = split.take([3, 1])
    assert taken.lengths.tolist() == lengths[[6, 7, 2, 3]].tolist()
    again = Encoded.from_tensors(split.tensors())
    assert (again.together, len(again)) == (2, 26)


def rows(scored: bool, count: int) -> list[dict[str, Any]]:
    found = [text for _, text in texts(count)]
    if not scored:
        return [{"text": text} for text in found]
    pairs = zip(found, found[3:] + found[:3], strict=True)
    return [{"sentence1": a, "sentence2": b, "score": _overlap(a, b)} for a, b in pairs]


def _overlap(one: str, other: str) -> float:
    left, right = set(one.lower().split()), set(other.lower().split())
    return round(5 * len(left & right) / len(left | right), 4)


def write(folder: Path, scored: bool) -> Path:
    folder.mkdir(parents=True)
    whole = rows(scored, 160)
    for name, part in (("train", whole[:96]), ("validation", whole[96:128]), ("test", whole[128:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


def document(teacher: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": f"path:{teacher}",
        "dataset": f"path:{folder}",
        "task": "embeddings",
        "student": [1, 3],
        "method": "kd",
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "max_length": LENGTH},
    } | changes


@dataclass(frozen=True)
class Done:
    scored: bool
    config: dict[str, Any]
    result: DistillResult
    test: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[True, False], ids=["scores", "texts"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("embeddings")
    config = document(write_tiny_bert(folder / "teacher"), write(folder / "data", request.param))
    result = distill(DistillConfig.parse(config), folder / "work")
    return Done(request.param, config, result, rows(request.param, 160)[128:])


def transformers_vectors(folder: Path, given: list[str]) -> torch.Tensor:
    """As a user of plain transformers computes them."""
    tokens = AutoTokenizer.from_pretrained(folder)(
        given, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH
    )
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def test_the_scorecard_measures_what_the_data_allow(done: Done) -> None:
    """Guards the two metrics: correlation with the scores by scipy, and the cosine to the teacher, from the folders."""
    card = done.result.scorecard
    assert card.task == "embeddings"
    student = done.result.student
    if done.scored:
        one, other = (
            transformers_vectors(student, [row[key] for row in done.test]) for key in ("sentence1", "sentence2")
        )
        expected = spearmanr((one * other).sum(dim=-1), [row["score"] for row in done.test]).statistic
        assert card.main_metric == "spearman"
        assert set(card.student.metrics) == {"spearman", "pearson"}
        assert card.baseline is not None
    else:
        given = [row["text"] for row in done.test]
        teacher = Path(done.config["teacher"].removeprefix("path:"))
        both = transformers_vectors(student, given), transformers_vectors(teacher, given)
        expected = float((both[0] * both[1]).sum(dim=-1).mean())
        assert card.main_metric == "teacher_cosine"
        assert card.teacher.metrics["teacher_cosine"].value == pytest.approx(1, abs=1e-5)
        assert card.baseline is None
        assert "texts without scores" in str(card.gap_recovery_note)
        assert card.retention.value == pytest.approx(expected, abs=1e-4)
    assert card.student.metrics[card.main_metric].value == pytest.approx(expected, abs=1e-4)
    assert done.result.teacher.finetuned is False
    assert (card.difficulty, done.result.hard_samples) == (None, ())
    (export,) = card.exports
    assert export.label_agreement == 1


def test_training_brings_a_random_student_near_its_teacher(tmp_path: Path) -> None:
    """Guards the soft loss's sign and its teacher, against the same start that hardly moves."""
    teacher, student = write_tiny_bert(tmp_path / "teacher"), {"layers": [1, 3], "start": "random"}
    found = {}
    for epochs, rate in ((1, 1e-9), (8, 3e-3)):
        training = {"epochs": epochs, "batch_size": 16, "learning_rate": rate, "max_length": LENGTH}
        folder = tmp_path / f"data-{epochs}"
        config = document(teacher, write(folder, False), student=student, training=training, export=[])
        card = distill(DistillConfig.parse(config), tmp_path / f"work-{epochs}").scorecard
        found[epochs] = card.student.metrics["teacher_cosine"].value
    assert abs(found[1]) < 0.3
    assert found[8] > found[1] + 0.3


def test_the_exported_student_gives_the_same_vectors(done: Done) -> None:
    """Guards the pooling inside the graph, its padding and its length, and the shapes of the answers."""
    student = Predictor.load(done.result.student, threads=1)
    given = [row["sentence1" if done.scored else "text"] for row in done.test][:9]
    vectors = student.predict(given)
    torch.testing.assert_close(
        torch.tensor(vectors), transformers_vectors(done.result.student, given), atol=1e-4, rtol=0
    )
    alone = student.predict(given[0])
    assert alone == pytest.approx(vectors[0], abs=1e-5)
    assert student.predict({"text": given[0]}) == alone
    assert sum(number**2 for number in alone) == pytest.approx(1, abs=1e-5)
    assert not student.pair
    with pytest.raises(InvalidInput, match="nothing to rank"):
        student.predict(given, top_k=2)


def test_the_folder_says_how_it_pools(done: Done) -> None:
    folder = done.result.student
    described = json.loads((folder / "limbeck.json").read_text())
    assert (described["pooling"], described["normalised"], described["width"]) == ("mean", True, 32)
    assert described["pair"] is False
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    assert pooling["word_embedding_dimension"] == 32
    kinds = [one["type"].rpartition(".")[2] for one in json.loads((folder / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    assert model_facts(folder).pooling == "mean"
    card = (folder / "README.md").read_text()
    assert "feature-extraction" in card
    assert "$" not in card


def test_sentence_transformers_gives_the_same_vectors(done: Done) -> None:
    """Guards what most users will do with the folder: the package's own files, its pooling, its length and the
    normalisation, over texts that are cut and a batch that is padded."""
    from sentence_transformers import SentenceTransformer

    given = [row["sentence1" if done.scored else "text"] for row in done.test][:9]
    given.append(" ".join(given))
    model = SentenceTransformer(str(done.result.student), device="cpu", local_files_only=True)
    found = model.encode(given, batch_size=4, convert_to_tensor=True)
    torch.testing.assert_close(found, transformers_vectors(done.result.student, given), atol=1e-5, rtol=0)
    predicted = torch.tensor(Predictor.load(done.result.student, threads=1).predict(given))
    torch.testing.assert_close(found, predicted, atol=1e-4, rtol=0)
    assert model.max_seq_length == LENGTH
    assert model.similarity_fn_name == "cosine"


def test_an_interrupted_job_ends_with_the_same_weights(done: Done, tmp_path: Path) -> None:
    """Guards the teacher's kept vectors and the pairs' rows on their way through a checkpoint."""
    config, stops = DistillConfig.parse(done.config), 0
    while True:
        try:
            result = distill(config, tmp_path, callbacks=Recorder(stop_after=9))
            break
        except Interrupted:
            stops += 1
    assert stops > 2
    one, other = (AutoModel.from_pretrained(each.student).state_dict() for each in (done.result, result))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_chinese_texts_train_and_answer(tmp_path: Path) -> None:
    """Guards Chinese from the file to the vector: characters are read, not dropped as unknown."""
    characters = sorted({character for row in CHINESE for text in row[:2] for character in text})
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters])}
    teacher = tmp_path / "teacher"
    BertTokenizer(vocab=vocabulary).save_pretrained(teacher)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(teacher)
    folder = tmp_path / "data"
    folder.mkdir()
    for place, name in enumerate(("train", "validation", "test")):
        found = [
            {"text": a[place:] + b[: place + 1] * number, "text_pair": b, "label": score}
            for a, b, score in CHINESE
            for number in range(1, 5)
        ]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    training = {"epochs": 1, "batch_size": 8, "max_length": LENGTH}
    result = distill(DistillConfig.parse(document(teacher, folder, student=1, training=training)), tmp_path / "work")
    given = [row[0] for row in CHINESE]
    assert 1 not in AutoTokenizer.from_pretrained(result.student)(given[0])["input_ids"]
    vectors = torch.tensor(Predictor.load(result.student, threads=1).predict(given))
    torch.testing.assert_close(vectors, transformers_vectors(result.student, given), atol=1e-4, rtol=0)
    assert float((vectors[0] * vectors[2]).sum()) < 0.999


def test_the_built_in_teacher_gives_its_own_vectors() -> None:
    """Guards the teacher as it is: texts that mean the same are near, as all-MiniLM was trained to have them."""
    folder = builtin_minilm().path
    model = PooledEncoder("mean").from_pretrained(folder).eval()
    given = ["A man is playing a guitar.", "Somebody plays the guitar.", "The stock market fell."]
    tokens = AutoTokenizer.from_pretrained(folder)(given, return_tensors="pt", padding=True)
    with torch.inference_mode():
        vectors = Embeddings().logits(model(**tokens))
    torch.testing.assert_close(vectors, transformers_vectors(folder, given))
    assert float(vectors[0] @ vectors[1]) > 0.7 > 0.3 > float(vectors[0] @ vectors[2])


def test_neurons_are_judged_by_whole_pairs(tmp_path: Path) -> None:
    """Guards against texts paired with strangers, whose loss says nothing of the neurons and breaks nothing."""
    teacher, folder = write_tiny_bert(tmp_path / "teacher"), write(tmp_path / "data", True)
    config = DistillConfig.parse(document(teacher, folder, student={"layers": [1, 3], "prune": 0.5}, export=[]))
    distill(config, tmp_path / "job")
    found = CheckpointStore(tmp_path / "job" / "state").read_tensors("pruning")[0]["importance"]
    task, tokenizer = Embeddings(), AutoTokenizer.from_pretrained(teacher)
    blueprint = Blueprint.read(teacher, task, (), Vocabulary.whole(len(tokenizer)))
    pairs = data.load(config.dataset, seed=config.training.seed, task="embeddings").train
    split = task.encode(tokenizer, pairs, (), LENGTH, lambda: None)
    batch = Collator(split, 0, torch.device("cpu"))(np.arange(len(split)))
    criterion = Criterion(task)
    expected = neuron_importance(
        blueprint.load_teacher(keep_head=True),
        [batch],
        lambda model, texts: criterion.hard(criterion.answer(model, texts), texts).value,
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scored", [True, False], ids=["scores", "texts"])
def test_several_teachers_vectors_have_a_mean(tmp_path: Path, scored: bool) -> None:
    """Guards the teachers together where scores judge them and where they are the judge; from the folders, by plain
    transformers: the mean of the vectors is what the scorecard is about."""
    places = [write_tiny_bert(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other"))]
    teacher = {"source": f"path:{places[0]}", "more": [f"path:{places[1]}"]}
    given = document(places[0], write(tmp_path / "data", scored), export=[]) | {"teacher": teacher}
    said = Recorder()
    result = distill(DistillConfig.parse(given), tmp_path / "work", callbacks=said)
    card, test = result.scorecard, rows(scored, 160)[128:]

    def mean(texts: list[str]) -> torch.Tensor:
        both = [transformers_vectors(place, texts) for place in places]
        return torch.nn.functional.normalize(both[0] + both[1], dim=-1)

    (message,) = (message for kind, message, _ in said.events if kind == "teachers.combined")
    assert "The 2 teachers together (as their mean)" in message
    if scored:
        one, other = (mean([row[key] for row in test]) for key in ("sentence1", "sentence2"))
        expected = spearmanr((one * other).sum(dim=-1), [row["score"] for row in test]).statistic
        assert card.teacher.metrics["spearman"].value == pytest.approx(expected, abs=1e-4)
        return
    texts_ = [row["text"] for row in test]
    expected = float((transformers_vectors(result.student, texts_) * mean(texts_)).sum(dim=-1).mean())
    assert card.student.metrics["teacher_cosine"].value == pytest.approx(expected, abs=1e-4)
    assert card.teacher.metrics["teacher_cosine"].value == pytest.approx(1, abs=1e-5)
    alone = [float((transformers_vectors(place, texts_) * mean(texts_)).sum(dim=-1).mean()) for place in places]
    assert [one.metrics["teacher_cosine"].value for one in card.teachers] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("said", ["cls", "a dense layer"])
def test_a_teacher_that_came_through_the_client_still_says_how_it_makes_vectors(tmp_path: Path, said: str) -> None:
    """Guards against vectors that the teacher never meant: without its note, it passes for one of any pooling."""
    first, archive = write_tiny_bert(tmp_path / "first"), tmp_path / "first.tar.gz"
    if said == "cls":
        (first / "1_Pooling").mkdir()
        (first / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    else:
        (first / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    packing.pack_model(first, archive)
    packing.unpack_model(archive, tmp_path / "came")
    teacher, wanted = model_facts(tmp_path / "came"), DistillConfig.parse(document(first, tmp_path))
    found = preflight.check(wanted, teacher=teacher, labels=(), task="embeddings", pair=False)
    assert [one.pointer for one in found] == ["/task/pooling"]
    assert f"the teacher's own folder says {said!r}" in found[0].detail


def test_several_teachers_without_a_mean_are_refused(tmp_path: Path) -> None:
    """Guards against vectors of two widths, and of two ways of pooling, before anything is trained."""
    first, wide = write_tiny_bert(tmp_path / "first"), write_tiny_bert(tmp_path / "wide", hidden=48)
    (wide / "1_Pooling").mkdir()
    (wide / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    teacher = {"source": f"path:{first}", "more": [f"path:{wide}"], "combine": "confidence"}
    wanted = DistillConfig.parse(document(first, tmp_path) | {"teacher": teacher})
    found = preflight.check(
        wanted, teacher=model_facts(first), labels=(), task="embeddings", more=(model_facts(wide),), pair=False
    )
    assert {one.pointer: one.detail for one in found}.keys() == {
        "/teacher/combine",
        "/teacher/more/0/source",
        "/task/pooling",
    }
    details = " ".join(one.detail for one in found)
    for said in ("a vector, sure or not", "vectors are 48 wide", "the folder of /teacher/more/0 says 'cls'"):
        assert said in details


@pytest.mark.parametrize(
    ("changes", "pair", "pointer", "says"),
    [
        ({"method": "none"}, False, "/method", "scores alone"),
        ({"method": "theseus"}, False, "/method", "scores alone"),
        ({"method": {"type": "kd", "alpha": 0}}, False, "/method", "scores alone"),
        ({"method": "fastbert"}, True, "/method", "does not serve"),
        ({"method": "self", "student": {}}, True, "/method", "would be copied"),
        ({"method": {"type": "noise", "kind": "random"}}, True, "/method/kind", "permuted"),
        ({"teacher": {"source": "builtin:minilm-l6", "finetune": True}}, False, "/teacher/finetune", "needs pairs"),
        ({"student": {"hidden_size": 192}}, True, "/student/hidden_size", "allowed is 384"),
        ({"student": {"preset": "T4-tiny"}}, True, "/student/preset", "allowed is 384"),
        ({"student": {"layers": 3, "prune": 0.5}}, False, "/student/prune", "these texts have none of"),
        ({"student": {"architecture": "bilstm"}}, True, "/student/architecture", "no states of single tokens"),
        ({"task": {"type": "embeddings", "pooling": "cls"}}, True, "/task/pooling", "'mean'"),
        ({"training": {"loss": "dist"}}, True, "/training/loss", "'kl'"),
        ({"training": {"sample_weighting": "curriculum"}}, True, "/training/sample_weighting", "leave it out"),
        ({"training": {"augmentation": "sentence_shuffle"}}, True, "/training/augmentation/0", "embeddings"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    changes: dict[str, Any], pair: bool, pointer: str, says: str
) -> None:
    """Guards hours of training on nothing."""
    config = {"teacher": "builtin:minilm-l6", "dataset": "org/data", "task": "embeddings", "method": "kd", "student": 3}
    facts = model_facts(builtin_minilm().path)

    def check(document: dict[str, Any]) -> list[tuple[str, str]]:
        parsed = DistillConfig.parse(document)
        found = preflight.check(parsed, teacher=facts, labels=[], task="embeddings", pair=pair)
        return [(one.pointer, one.detail) for one in found]

    assert check(config) == []
    found = check(config | changes)
    assert any(where == pointer and says in detail for where, detail in found), found


def test_columns_of_texts_and_of_pairs(tmp_path: Path) -> None:
    """Guards a column of labels that is taken for scores, and scores that are forgotten."""

    def load(content: list[dict[str, Any]], **columns: str) -> data.Corpus:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        return data.load(
            Dataset.model_validate({"source": f"path:{folder}", "columns": columns}), seed=0, task="embeddings"
        )

    labelled = [{"text": row["text"], "label": "x"} for row in rows(False, 60)]
    assert load(labelled).train.labels[:2] == [None, None]
    pairs = load(rows(True, 60))
    assert pairs.train.pairs is not None
    assert all(isinstance(label, float) for label in pairs.train.labels)
    with pytest.raises(InvalidDataset, match="name text_pair"):
        load(labelled, text="text", label="label")
    with pytest.raises(InvalidDataset, match="no label column"):
        load([{"sentence1": "a b", "sentence2": "c d"}] * 8)


@pytest.mark.parametrize("scored", [True, False], ids=["scores", "texts"])
def test_a_stored_data_set_reads_back_the_same(tmp_path: Path, scored: bool) -> None:
    """Guards uploads, whose files are read again by the job; and STS-B that went up as numbers of pairs."""
    file, out = tmp_path / "train.jsonl", tmp_path / "out"
    out.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(scored, 80)))
    taken = ingest(
        {"train": (file, file.name)}, out, columns=Columns(label="score" if scored else None), task="embeddings"
    )
    assert taken.profile["task"] == "embeddings"
    assert taken.profile["pair"] is scored
    assert ("numbers" in taken.profile["splits"]["train"]) is scored
    again = data.load(Dataset(source="dataset:ds_1"), seed=0, sources={"dataset:ds_1": out})
    assert (again.task, again.sha256) == ("embeddings", taken.sha256)
    if scored:
        numbers = tmp_path / "numbers"
        numbers.mkdir()
        ingest({"train": (file, file.name)}, numbers, columns=Columns(label="score"))
        source = {"dataset:ds_1": numbers}
        other = data.load(Dataset(source="dataset:ds_1"), seed=0, sources=source, task="embeddings")
        assert other.train == again.train


def test_scores_become_shares_of_their_range(tmp_path: Path) -> None:
    """Guards the cosine regression against scores from 0 to 5, which no cosine reaches."""
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_bert(tmp_path))
    split = data.Split(["Return a number."] * 3, ["Give the count back to the caller."] * 3, [0.0, 2.0, 5.0])
    found = Embeddings().encode(tokenizer, split, (), LENGTH, lambda: None)
    assert found.labels.tolist() == pytest.approx([0, 0, 0.4, 0.4, 1, 1])
    batch = Collator(found, 0, torch.device("cpu"))(np.arange(6))
    assert batch.inputs["input_ids"].shape[0] == 6
    assert Embeddings().truth(found).tolist() == pytest.approx([0, 0.4, 1])
    constant = replace(split, labels=[2.0, 2.0, 2.0])
    assert Embeddings().encode(tokenizer, constant, (), LENGTH, lambda: None).labels.tolist() == [0] * 6
