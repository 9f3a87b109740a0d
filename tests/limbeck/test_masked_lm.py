"""Masked LM: what is hidden, answers at those places alone, and what is learned there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from limbeck import metrics
from limbeck.batches import Collator, Encoded
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.data.corpus import Split
from limbeck.ensemble import Ensemble, Panel
from limbeck.losses import soft_losses
from limbeck.methods.base import Models
from limbeck.methods.distilbert import DistilBERT
from limbeck.model_folder import model_facts
from limbeck.soft_loss import DecoupledDistillation
from limbeck.students import Blueprint, read_config
from limbeck.tasks._cloze import hide, shown
from limbeck.vocabulary import Vocabulary
from tests.families import FAMILIES, write_tiny
from tests.limbeck.hidden_words import LENGTH, TASK, config, encoded
from tests.limbeck.task_data import texts
from tests.tiny import write_tiny_lm


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lm(tmp_path_factory.mktemp("lm") / "teacher")


def test_what_is_hidden(teacher: Path) -> None:
    """Guards BERT's rule, and special tokens, which nobody is to find; a text with no hidden token has no loss."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    split = encoded(teacher, 240)
    plain = tokenizer([text for _, text in texts(240)], truncation=True, max_length=LENGTH)["input_ids"]
    original = np.array([token for row in plain for token in row])
    hidden = split.labels != -100
    assert (shown(split) == original).all()
    assert not np.isin(original[hidden], tokenizer.all_special_ids).any()
    words = ~np.isin(original, tokenizer.all_special_ids)
    assert hidden.sum() / words.sum() == pytest.approx(0.15, abs=0.03)
    assert (np.add.reduceat(hidden, split.starts[:-1]) >= 1).all()
    masked, same = split.ids[hidden] == tokenizer.mask_token_id, split.ids[hidden] == original[hidden]
    assert masked.mean() == pytest.approx(0.8, abs=0.05)
    assert same.mean() == pytest.approx(0.1, abs=0.04)
    assert set(split.ids[hidden & (split.ids != 4)]) <= set(original[words])


def test_texts_without_a_known_token_have_one_to_find(teacher: Path) -> None:
    """Guards a batch of foreign texts, whose loss would be the mean of nothing."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = TASK.encode(tokenizer, Split(["中文", "Return it."], None, [None, None]), (), LENGTH, lambda: None)
    assert found.labels[found.starts[0] : found.starts[1]].tolist().count(-100) == found.lengths[0] - 1
    assert TASK.truth(found)[0] == [tokenizer.unk_token_id]


def test_epochs_hide_other_tokens_and_hang_on_nothing_but_seed_and_epoch(teacher: Path) -> None:
    """Guards the exact resumption, and against a student that sees the same tokens hidden in each epoch."""
    split = encoded(teacher)
    first, again, second = TASK.in_epoch(split, 1, 0), TASK.in_epoch(hide(split, [9]), 1, 0), TASK.in_epoch(split, 1, 1)
    assert (first.ids == again.ids).all()
    assert (first.labels == again.labels).all()
    assert ((first.labels != -100) != (second.labels != -100)).any()
    assert (shown(first) == shown(second)).all()
    stored = Encoded.from_tensors(split.tensors())
    assert (stored.labels == split.labels).all()
    assert stored.cloze
    taken = split.take(np.array([5, 2]))
    assert TASK.truth(taken) == [TASK.truth(split)[5], TASK.truth(split)[2]]


def test_metrics_by_hand() -> None:
    """Guards figures of texts that count alike where tokens should, and a perplexity of means of means."""
    truth = [[7, 8], [9]]
    found = [[[7, 0.5], [3, 2.0]], [[9, 0.1]]]
    counts = np.ones((1, 2), dtype=np.float32)

    def figure(name: str) -> float:
        metric = metrics.METRICS[name]
        return float(metric.figures(counts, metric.columns(found, truth))[0])

    assert figure("masked_accuracy") == pytest.approx(2 / 3)
    assert figure("perplexity") == pytest.approx(np.exp((0.5 + 2.0 + 0.1) / 3))
    assert TASK.guess([[1, 2], [2]]) == [[[2, 0.0], [2, 0.0]], [[2, 0.0]]]
    assert TASK.agreement(found, [[[7, 0.0], [4, 0.0]], [[9, 9.0]]], None) == pytest.approx(2 / 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_at_hidden_places_alone_and_is_saved_whole(tmp_path: Path, family: str) -> None:
    """Guards the head of each family: read from its folder, cut to the hidden places, and written with its layer over
    the vocabulary and its bias, so that plain transformers answers the same."""
    folder = write_tiny(family, tmp_path / "teacher", head="ForMaskedLM")
    facts = model_facts(folder)
    assert facts.has_head_for(TASK)
    split = encoded(folder, 12)
    blueprint = Blueprint.read(folder, TASK, (), Vocabulary.whole(int(read_config(folder).vocab_size)))
    model = blueprint.load_teacher(keep_head=True).eval()
    batch = Collator(split, int(model.config.pad_token_id or 0), torch.device("cpu"))(np.arange(12))
    plain: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert model.get_submodule(TASK.output_layer(family)).out_features == plain.config.vocab_size
    with torch.inference_mode():
        whole = plain(**batch.inputs).logits
        torch.testing.assert_close(TASK.answer(model, batch), whole[batch.labels != -100])
        torch.testing.assert_close(model(**batch.inputs).logits, whole)  # no hook is left behind
    student = blueprint.cut(model.state_dict(), (0, 2))
    blueprint.save(student, tmp_path / "student")
    again: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**batch.inputs).logits, student.eval()(**batch.inputs).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trimmed_vocabulary_answers_among_its_tokens(tmp_path: Path, tied: bool) -> None:
    """Guards the rows of the head: those of the tokens that stay, whether they are the word table or their own."""
    folder = write_tiny("bert", tmp_path, head="ForMaskedLM", tie_word_embeddings=tied)
    split = encoded(folder, 12)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = int(read_config(folder).vocab_size)
    vocabulary = Vocabulary.of([split], special=tokenizer.all_special_ids, pad_id=0, full_size=size)
    small = vocabulary.compact(split)
    model = Blueprint.read(folder, TASK, (), vocabulary).load_teacher(keep_head=True).eval()
    plain: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
    one, other = (Collator(part, 0, torch.device("cpu"))(np.arange(12)) for part in (small, split))
    with torch.inference_mode():
        expected = TASK.answer(plain, other)[:, torch.from_numpy(vocabulary.kept)]
        torch.testing.assert_close(TASK.answer(model, one), expected)
    assert TASK.truth(vocabulary.restore(small)) == TASK.truth(split)


def test_several_teachers_are_asked_in_every_step_as_the_mean_of_their_chances(teacher: Path, tmp_path: Path) -> None:
    """Guards a soft loss against the first of them alone, also where a method has asked that one already."""
    folders = (teacher, write_tiny_lm(tmp_path / "other", common="a"))
    vocabulary = Vocabulary.whole(int(read_config(teacher).vocab_size))
    prints = [Blueprint.read(folder, TASK, (), vocabulary) for folder in folders]
    each = [one.load_teacher(keep_head=True).eval().requires_grad_(False) for one in prints]
    student = prints[0].cut(each[0].state_dict(), (0, 2)).eval()
    batch = Collator(encoded(teacher, 6), 0, torch.device("cpu"))(np.arange(6))
    ensemble = Ensemble(2)
    criterion = Criterion(TASK, ensemble=ensemble, teacher=lambda: Panel(each, ensemble))
    logits, first = TASK.answer(student, batch), TASK.answer(each[0], batch)
    with torch.inference_mode():
        chances = torch.stack([(TASK.answer(one, batch) / 2).softmax(-1) for one in each]).mean(0)
    expected = soft_losses(logits, 2 * chances.log(), 2.0).mean()
    alone = soft_losses(logits, first, 2.0).mean()
    for known in (None, first):
        found = criterion.soft(logits, batch, 2.0, teacher_logits=known).value
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert abs(expected - alone) > 1e-3


@pytest.mark.parametrize("answers", ["hidden", "all"])
def test_the_triple_loss_by_hand(teacher: Path, answers: str) -> None:
    """Guards the paper's three terms: the teacher's answers at the places asked for, the hidden tokens, and every
    token's direction; and the start, which is every other layer."""
    blueprint = Blueprint.read(teacher, TASK, (), Vocabulary.whole(int(read_config(teacher).vocab_size)))
    taught = blueprint.load_teacher(keep_head=True).eval().requires_grad_(False)
    student = blueprint.cut(taught.state_dict(), (0, 2)).eval()
    batch = Collator(encoded(teacher, 6), 0, torch.device("cpu"))(np.arange(6))
    method = DistilBERT(answers=answers)  # type: ignore[arg-type]
    assert method.begin(DistillConfig.parse(config(teacher, teacher)).student, TASK).init == "skip"
    objective = method.build(method.parts()[0], Models(student, lambda: taught, (0, 2)), Criterion(TASK))
    terms = objective.losses(batch, 0, 10)
    with torch.inference_mode():
        ours, theirs = (model(**batch.inputs, output_hidden_states=True) for model in (student, taught))
    real, hidden = batch.inputs["attention_mask"].bool(), batch.labels != -100
    asked = hidden if answers == "hidden" else real
    soft = soft_losses(ours.logits[asked], theirs.logits[asked], 2.0).mean()
    words = torch.nn.functional.cross_entropy(ours.logits[hidden], batch.labels[hidden])
    near = torch.nn.functional.cosine_similarity(ours.hidden_states[-1][real], theirs.hidden_states[-1][real], dim=-1)
    for name, expected, weight in (("soft", soft, 5), ("words", words, 2), ("cosine", (1 - near).mean(), 1)):
        torch.testing.assert_close(terms[f"{name}_loss"].value.detach(), expected, rtol=1e-4, atol=1e-5)
        assert terms[f"{name}_loss"].weight == weight
    assert terms["soft_loss"].unit == ("labelled" if answers == "hidden" else "tokens")


def test_answers_at_all_tokens_know_what_is_hidden(teacher: Path) -> None:
    """Guards losses that ask for the truth, to which a hidden token would be the mask."""
    blueprint = Blueprint.read(teacher, TASK, (), Vocabulary.whole(int(read_config(teacher).vocab_size)))
    taught = blueprint.load_teacher(keep_head=True).eval().requires_grad_(False)
    student = blueprint.cut(taught.state_dict(), (0, 2)).eval()
    batch = Collator(encoded(teacher, 6), 0, torch.device("cpu"))(np.arange(6))
    real, hidden = batch.inputs["attention_mask"].bool(), batch.labels != -100
    truth = torch.where(hidden, batch.labels, batch.inputs["input_ids"])
    assert not torch.equal(truth, batch.inputs["input_ids"])
    told: list[torch.Tensor] = []

    class Listening(DecoupledDistillation):
        def losses(self, task: Any, student: Any, teacher: Any, targets: torch.Tensor, *rest: Any) -> torch.Tensor:
            told.append(targets)
            return super().losses(task, student, teacher, targets, *rest)

    method, criterion = DistilBERT(answers="all"), Criterion(TASK, Listening())
    objective = method.build(method.parts()[0], Models(student, lambda: taught, (0, 2)), criterion)
    objective.losses(batch, 0, 10)
    assert [one.tolist() for one in told] == [truth[real].tolist()]
