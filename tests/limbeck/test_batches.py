"""Batches: every example once, random and of like length, padded no wider than needed."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from limbeck.batches import Collator, Encoded, forward_batches, training_batches
from limbeck.vocabulary import Vocabulary

LENGTHS = np.random.default_rng(0).integers(3, 60, size=500)


def encoded(rows: list[list[int]], segments: list[list[int]] | None = None) -> Encoded:
    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    kinds = None if segments is None else np.array(list(chain(*segments)), dtype=np.int8)
    return Encoded(np.array(list(chain(*rows)), dtype=np.int32), kinds, starts, np.arange(len(rows)) % 2)


def test_an_epoch_holds_every_example_once() -> None:
    batches = training_batches(LENGTHS, 8, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert len(batches) == 63
    assert sorted(len(batch) for batch in batches)[:2] == [4, 8]


def test_epochs_and_seeds_differ_and_are_repeatable() -> None:
    """Guards resuming: the order is a function of seed and epoch, and of nothing that a process carries along."""
    again = [training_batches(LENGTHS, 8, seed=1, epoch=2) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*again, strict=True))
    other = training_batches(LENGTHS, 8, seed=1, epoch=3)
    assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(again[0], other, strict=True))


def test_buckets_waste_little_padding_and_stay_random() -> None:
    """Guards both sides of bucketing: sorted lengths would train on short texts first, random ones pad by half."""
    batches = training_batches(LENGTHS, 8, seed=1, epoch=0)
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert LENGTHS.sum() / padded > 0.95
    longest = np.array([LENGTHS[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3
    partners = [{int(x) for e in range(20) for b in training_batches(LENGTHS, 8, seed=1, epoch=e) if 7 in b for x in b}]
    assert len(partners[0]) > 25


def test_forward_batches_cover_all_rows_within_the_token_budget() -> None:
    batches = forward_batches(LENGTHS, tokens=256)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert max(len(batch) * LENGTHS[batch].max() for batch in batches) <= 256


def test_a_text_longer_than_the_budget_gets_a_batch_of_its_own() -> None:
    assert [list(batch) for batch in forward_batches(np.array([300, 5, 400]), tokens=256)] == [[1], [0], [2]]


def test_collating_pads_to_the_longest_and_masks_the_rest() -> None:
    """Guards the alignment of ids, segments, mask, labels and teacher logits."""
    data = encoded([[5, 6, 7], [8], [9, 10]], [[0, 0, 1], [0], [0, 1]])
    logits = torch.tensor([[0.0], [1.0], [2.0]])
    batch = Collator(data, 0, torch.device("cpu"), logits)(np.array([2, 0]))
    assert batch.inputs["input_ids"].tolist() == [[9, 10, 0], [5, 6, 7]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch.labels.tolist() == [0, 0]
    assert batch.teacher_logits is not None
    assert batch.teacher_logits.tolist() == [[2.0], [0.0]]
    assert batch.counts == {"examples": 2, "tokens": 5, "pairs": 13}


def test_encoded_texts_survive_a_checkpoint() -> None:
    data = encoded([[5, 6, 7], [8]], [[0, 0, 1], [0]])
    again = Encoded.from_tensors(data.tensors())
    assert again.segments is not None
    assert (again.ids == data.ids).all()
    assert (again.starts == data.starts).all()
    assert again.lengths.tolist() == [3, 1]


def test_a_compact_vocabulary_gives_the_same_rows_and_can_be_undone() -> None:
    """Guards the padding id, which RoBERTa's positions hang on, and rows that the data never uses."""
    data = encoded([[3, 90, 50], [3, 7]])
    vocabulary = Vocabulary.of([data], special=[1, 99], pad_id=1, full_size=100)
    assert vocabulary.kept.tolist() == [0, 1, 3, 7, 50, 90, 99]
    table = torch.arange(100.0)[:, None].repeat(1, 2)
    small = vocabulary.shrink(table)
    assert small[torch.from_numpy(vocabulary.compact(data).ids).long(), 0].tolist() == [3.0, 90.0, 50.0, 3.0, 7.0]
    grown = vocabulary.grow(small + 0.5, table)
    assert grown[90, 0].item() == pytest.approx(90.5)
    assert grown[89, 0].item() == pytest.approx(89.0)


def test_examples_in_windows_are_found_with_all_of_these() -> None:
    """Guards the rows of examples that come in parts, in any order; and the time, which grew with the square."""
    owners = np.array([0, 0, 1, 2, 2, 2, 3])
    starts = np.arange(8)
    data = Encoded(np.arange(7, dtype=np.int32), None, starts, np.arange(7), owners=owners)
    assert data.rows_of([2, 0, 1]).tolist() == [3, 4, 5, 0, 1, 2]
    taken = data.take([2, 0])
    assert (taken.ids.tolist(), taken.owners.tolist()) == ([3, 4, 5, 0, 1], [0, 0, 0, 1, 1])  # type: ignore[union-attr]
    many = replace(data, ids=np.zeros(60_000, np.int32), starts=np.arange(60_001), owners=np.arange(60_000))
    begun = time.perf_counter()
    assert len(many.rows_of(np.arange(60_000))) == 60_000
    assert time.perf_counter() - begun < 1
