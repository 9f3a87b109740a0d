"""Embeddings: losses and pooling by hand, what their data may be, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from limbeck import data, preflight
from limbeck.batches import Collator, Encoded
from limbeck.checkpoint import CheckpointStore
from limbeck.client import packing
from limbeck.config import Columns, Dataset, DistillConfig
from limbeck.criterion import Criterion
from limbeck.data.ingest import ingest
from limbeck.engine import distill
from limbeck.errors import Diverged, InvalidDataset
from limbeck.losses import cosine_losses, vector_losses
from limbeck.model_folder import model_facts
from limbeck.pruning import neuron_importance
from limbeck.runtime.parts import similarities
from limbeck.sources import builtin_minilm
from limbeck.students import Blueprint
from limbeck.tasks._pooling import sentence_vectors
from limbeck.tasks.embeddings import Embeddings, TextEmbeddings
from limbeck.vocabulary import Vocabulary
from tests.limbeck.scored_pairs import LENGTH, document, rows, write
from tests.tiny import write_tiny_bert


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


def test_no_cosine_is_beyond_one() -> None:
    """Guards ``acos`` and thresholds at 1 of clients: a text beside itself had 1.0000004."""
    vector = [0.6000001, 0.8000002]
    assert similarities([vector, vector, [-one for one in vector]]) == [1.0, -1.0]
