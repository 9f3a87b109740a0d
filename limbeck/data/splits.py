"""Cutting splits: stratified where an example has one label, by a fixed seed, and with no text on both sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable

import numpy as np

from limbeck.data.corpus import ONE_LABEL, Split
from limbeck.data.forms import FORMS, Form
from limbeck.data.table import fault

#: Cuts depend on the data alone, never on a training seed: every job on a data set is judged on the same examples.
_CUT_SEED = 20_150_309
_HELD_OUT = 0.1
#: A share of two thousand texts is known to within about two points; more would only take time from every epoch.
_MOST_HELD_OUT = 2000


def cut(train: Split, share: float = _HELD_OUT, *, form: Form = FORMS[ONE_LABEL]) -> tuple[Split, Split]:
    """Take ``share`` of each class out of ``train``, but about two thousand texts at the most.

    Examples of the same text go together, so that what is held out was never trained on. Each class keeps a text in
    train. Where an example has not just one label, ``share`` of all texts is taken, at random.

    Returns:
        What is left of train, and what was held out, each in the order of the rows.

    Raises:
        InvalidDataset: train is so small that nothing can be held out.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(form.groups(train)):
        groups[key].append(row)
    share = min(share, _MOST_HELD_OUT / len(groups if form.stratified else train))
    if not form.stratified:
        return _divided(train, _drawn(list(groups.values()), share))
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for rows in groups.values():
        by_class[train.labels[rows[0]]].append(rows)
    draw = np.random.default_rng(_CUT_SEED)
    held: list[int] = []
    left = Counter(train.labels)
    for label in sorted(by_class):
        members = by_class[label]
        for index in draw.permutation(len(members))[: max(1, round(share * len(members)))]:
            # Copies of a text may differ in their label: each of these classes has to have another text.
            taken = Counter(train.labels[row] for row in members[index])
            if all(left[one] > count for one, count in taken.items()):
                left -= taken
                held.extend(members[index])
    return _divided(train, held)


def _drawn(groups: list[list[int]], share: float) -> list[int]:
    """The rows of so many groups, drawn at random, that they are about ``share`` of all rows; a group stays."""
    wanted = max(1, round(share * sum(map(len, groups))))
    held: list[int] = []
    for index in np.random.default_rng(_CUT_SEED).permutation(len(groups))[: len(groups) - 1]:
        if len(held) >= wanted:
            break
        held.extend(groups[index])
    return held


def _divided(train: Split, held: list[int]) -> tuple[Split, Split]:
    if not held:
        raise fault(
            "train", "there are too few rows to hold out validation and test; give more rows, or a file for each split"
        )
    chosen = set(held)
    return train.take(row for row in range(len(train)) if row not in chosen), train.take(sorted(chosen))


def limited(train: Split, limit: int | None, seed: int, *, form: Form = FORMS[ONE_LABEL]) -> Split:
    """At most ``limit`` examples with the classes in their proportion, drawn by ``seed``, each class at least once.

    Where an example has not just one label, they are drawn at random.
    """
    if limit is None or len(train) <= limit:
        return train
    if not form.stratified:
        return train.take(sorted(np.random.default_rng(seed).permutation(len(train))[:limit].tolist()))
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(train.labels):
        rows_of[label].append(row)
    if limit < len(rows_of):
        raise fault("train", f"a limit of {limit} is less than the {len(rows_of)} classes")
    draw = np.random.default_rng(seed)
    shares = {label: limit * len(rows) / len(train) for label, rows in rows_of.items()}
    take = {label: max(1, int(share)) for label, share in shares.items()}
    # What rounding left over goes to the classes that lost most by it, so that the sum is the limit exactly.
    for label in sorted(shares, key=lambda one: take[one] - shares[one]):
        if sum(take.values()) >= limit:
            break
        take[label] += take[label] < len(rows_of[label])
    while sum(take.values()) > limit:
        largest = max(take, key=lambda one: take[one])
        take[largest] -= 1
    kept = [row for label, rows in sorted(rows_of.items()) for row in draw.permutation(rows)[: take[label]].tolist()]
    return train.take(sorted(kept))
