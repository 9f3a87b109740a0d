"""Texts between the layers of a student with early exits: who is computed with whom, who is next, what may wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from limbeck.runtime import Predictor
from limbeck.runtime.encoding import STRETCH, Row
from limbeck.runtime.exits import ExitSession
from limbeck.runtime.layers import Layers, Text
from tests.exported import texts


def text(name: str, tokens: int = 10) -> Text:
    return Text(Row([1] * tokens, [0] * tokens), 0.5, name)


def on(layers: Layers, taken: Sequence[Text], *, staying: str = "") -> None:
    """Those who are named stay, with the states of one layer more; the others have left."""
    for one in taken:
        one.layers += 1
        one.states = np.zeros((len(one), 2), dtype=np.float32)
    layers.put(one for one in taken if one.owner in staying)


def names(taken: Sequence[Text]) -> str:
    return "".join(one.owner for one in taken)


def test_those_left_over_from_two_calls_go_on_together() -> None:
    """Guards batches that only shrink: b stays of one window, d of a later one, and their next layer is one call."""
    layers = Layers()
    layers.add([text("a"), text("b")])
    first = layers.take()
    layers.add([text("c"), text("d")])
    on(layers, first, staying="b")
    second = layers.take()
    assert (names(first), names(second)) == ("ab", "cd"), "the later ones catch up"
    on(layers, second, staying="d")
    third = layers.take()
    assert names(third) == "bd"
    assert [one.layers for one in third] == [1, 1]
    assert not layers


def test_without_patience_the_oldest_is_next_whoever_could_join_it() -> None:
    layers = Layers(patience=0)
    layers.add([text("a")])
    first = layers.take()
    layers.add([text("b")])
    on(layers, first, staying="a")
    assert names(layers.take()) == "a"


def test_nobody_is_passed_by_for_ever() -> None:
    """Guards starvation: with new texts in front of every call, one of six layers is through within its six calls and
    the few that it lets pass, and so is each of those behind it."""
    layers = Layers(full=1, patience=4)  # nobody shares a call, so that every new one is in the way
    last = text("x")
    layers.add([last])
    calls = 0
    while last.layers < 6:
        calls += 1
        assert calls < 200, "it starves"
        taken = layers.take()
        on(layers, taken, staying="x")  # the others leave behind their first layer
        layers.add([text("o")])
    assert 6 < calls <= 6 + 5 * 4


def test_only_texts_of_like_length_share_a_call_and_none_is_too_large() -> None:
    layers = Layers()
    lengths = [3, 40, 4, 11, 45, 200, 12, 39, 300, 3, 41]
    layers.add([text(str(i), tokens) for i, tokens in enumerate(lengths)])
    seen = []
    while taken := layers.take():
        sizes = [len(one) for one in taken]
        assert max(sizes) <= STRETCH * min(sizes)
        assert len(sizes) == 1 or max(sizes) * len(sizes) <= 256
        seen += [int(one.owner) for one in taken]
    assert sorted(seen) == list(range(len(lengths)))


def test_a_call_is_full_of_the_oldest() -> None:
    """Guards a newcomer that takes the place of one who came first, also where the older comes back later."""
    layers = Layers(full=20)
    layers.add([text("a"), text("b")])
    old = layers.take()
    layers.add([text("c"), text("d")])
    young = layers.take()
    on(layers, young, staying="cd")
    on(layers, old, staying="ab")
    assert names(layers.take()) == "ab"
    assert names(layers.take()) == "cd"


def test_states_that_wait_are_bounded() -> None:
    """Guards memory: a list of a million texts may not stand between two layers at once."""
    layers = Layers(full=10, held=30, patience=1_000_000)  # without the bound all would wait behind the first layer
    layers.add([text("o") for _ in range(50)])
    most = calls = 0
    while taken := layers.take():
        calls += 1
        on(layers, taken, staying="o" if taken[0].layers < 3 else "")
        most = max(most, layers.held)
    assert most == 30
    assert calls == 200, "and still everybody gets through all four layers"
    assert layers.held == 0


def test_who_is_gone_takes_no_place_in_a_call() -> None:
    layers = Layers(full=20)
    layers.add([text(name) for name in "abcd"])
    assert names(layers.take(lambda one: one.owner in "ac")) == "bd"
    assert not layers
    layers.add([text("e")])
    first = layers.take()
    on(layers, first, staying="e")
    assert layers.held == 10
    assert layers.take(lambda _: True) == []
    assert (layers.held, bool(layers)) == (0, False)


@pytest.fixture(scope="module")
def student(exported_exits_student: Path) -> Predictor:
    return Predictor.load(exported_exits_student, threads=1)


def session_of(student: Predictor) -> ExitSession:
    assert student.exits is not None
    return student.exits


def middle_of(student: Predictor, asked: Sequence[str]) -> float:
    """A speed at which some leave behind each layer."""
    for speed in np.linspace(0.9, 1, 201):
        found = coded(student, asked, [float(speed)] * len(asked))
        for _ in session_of(student).through(found):
            pass
        if {one.layers for one in found} == {1, 2, 3}:
            return float(speed)
    pytest.fail("at no speed some leave behind each layer")


def coded(student: Predictor, asked: Sequence[str], speeds: Sequence[float]) -> list[Text]:
    return [
        one
        for place, (words, speed) in enumerate(zip(asked, speeds, strict=True))
        for one in student.coded(student.question(words, speed=speed), [place])
    ]


@pytest.mark.parametrize("rule", [{}, {"patience": 0}, {"full": math.inf, "stretch": math.inf}, {"held": 1}])
def test_company_changes_no_answer(student: Predictor, rule: dict[str, float]) -> None:
    """Guards states that go to the wrong text, padding that is seen, and a speed that is another's: each text leaves
    behind the same layer with the same logits as alone, whoever it meets on its way."""
    asked = texts(40)
    middle = middle_of(student, asked)
    speeds = [(0.0, middle, 1.0, middle)[place % 4] for place in range(len(asked))]
    session = session_of(student)
    alone = [next(session.through([one])) for one in coded(student, asked, speeds)]
    together = coded(student, asked, speeds)
    order = [one.owner for one in session.through(together, Layers(**rule))]  # type: ignore[arg-type]
    assert sorted(order) == list(range(len(asked)))
    assert [one.layers for one in together] == [one.layers for one in alone]
    assert {one.layers for one in alone} == {1, 2, 3}
    for found, expected in zip(together, alone, strict=True):
        assert found.logits is not None
        assert found.states is None, "who has left holds no memory"
        assert expected.logits is not None
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
