"""Whole embeddings jobs with scores and without: the student's vectors are those of other libraries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from limbeck.config import DistillConfig
from limbeck.engine import DistillResult, distill
from limbeck.errors import Interrupted, InvalidInput
from limbeck.model_folder import model_facts
from limbeck.runtime import Predictor
from limbeck.sources import builtin_minilm
from limbeck.tasks._pooling import PooledEncoder
from limbeck.tasks.embeddings import Embeddings
from tests.limbeck.bench import Recorder
from tests.limbeck.scored_pairs import LENGTH, document, rows, write
from tests.tiny import write_tiny_bert

CHINESE = (
    ("今天的天气很好", "今天天气不错", 4.5),
    ("他在图书馆看书", "他在看书", 3.5),
    ("股票市场大幅下跌", "我喜欢吃苹果", 0.0),
    ("火车晚点了两个小时", "火车晚点两小时", 5.0),
)


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
