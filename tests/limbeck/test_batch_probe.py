"""The probe for ``training.gradient_accumulation: auto``: what it chooses, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from limbeck.batch_probe import PROBES, chosen, part_sizes
from limbeck.batches import Batch
from limbeck.config import DistillConfig, Training
from limbeck.criterion import Criterion
from limbeck.engine import distill
from limbeck.errors import Interrupted, InvalidConfig, OutOfMemory
from limbeck.loop import Fitted, train
from limbeck.memory import Memory
from limbeck.methods.auto import Auto
from limbeck.methods.base import Models, Objective, Part, Term
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.dynabert import DynaBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.none import FineTuning
from limbeck.methods.patient import Patient
from limbeck.methods.theseus import Theseus
from limbeck.methods.tinybert import TinyBERT
from limbeck.phase import Phase
from limbeck.ranks import Ranks
from limbeck.run import Run
from limbeck.scorecard import BatchTry, Scorecard
from limbeck.weighting import Curriculum
from tests.limbeck.bench import Bench, Recorder
from tests.tiny import write_tiny_bert, write_tiny_dataset

GB = 10**9


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


class Rising(Memory):
    """A memory of 10 GB of which the first try takes so many, the next one as many more, and so on."""

    def __init__(self, gigabytes: int, *, kills: bool = False) -> None:
        self.kills, self._each, self._tries = kills, gigabytes * GB, 0

    def used(self) -> int:
        return 0

    def most(self, sharers: int) -> int | None:
        self._tries = 0
        return 10 * GB

    def forget_peak(self) -> None:
        self._tries += 1

    def peak(self) -> int:
        return self._tries * self._each

    def settle(self) -> None:
        return None


def fit(phase: Phase, run: Run, memory: Memory | None = None) -> Fitted:
    run.memory = memory or run.memory
    return train(phase, run)


def found(run: Run, key: str = "distilling/main") -> dict[str, Any]:
    known: dict[str, Any] = run.facts[PROBES][key]
    return known


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (32, [1, 2, 4, 8, 16, 32]),
        (24, [1, 3, 6, 12, 24]),
        (30, [1, 3, 6, 15, 30]),
        (7, [1, 7]),
        (1, [1]),
        (1024, [4, 8, 16, 32, 64, 128, 256, 512, 1024]),
    ],
)
def test_every_size_that_is_tried_can_be_named_by_hand(batch: int, sizes: list[int]) -> None:
    """Guards against parts that ``gradient_accumulation`` as a number could not ask for."""
    assert part_sizes(batch) == sizes
    for size in sizes:
        Training.model_validate({"batch_size": batch, "gradient_accumulation": batch // size})


def tried(*speeds: float | None, fits: int) -> list[BatchTry]:
    """Parts of 1, 2, 4 … examples, of which the first so many fit."""
    return [
        BatchTry(examples=2**place, fits=place < fits, bytes=1, examples_per_second=speed)
        for place, speed in enumerate(speeds)
    ]


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        (tried(10, 20, 40, 41, fits=4), 8),
        (tried(10, 41, 40, 39, fits=4), 8),
        (tried(10, 41, 40, 30, fits=4), 4),
        (tried(50, 41, 40, 30, fits=4), 1),
        (tried(10, 20, 40, 80, fits=3), 4),
        (tried(10, 20, None, fits=2), 2),
        (tried(10, fits=0), 1),
    ],
    ids=["larger", "all alike", "larger is slower", "one at a time", "does not fit", "ran out", "over its share"],
)
def test_the_largest_that_fits_and_is_not_slower_is_chosen(tries: list[BatchTry], expected: int) -> None:
    assert chosen(tries) == expected


_METHODS = [
    FineTuning(),
    KnowledgeDistillation(),
    Patient(),
    TinyBERT(),
    MiniLM(),
    Auto(),
    DistilBERT(),
    FastBert(),
    DynaBERT(),
    Theseus(),
]


@pytest.mark.parametrize("method", _METHODS, ids=lambda method: method.type)
def test_a_probed_training_ends_as_one_whose_parts_were_named(bench: Bench, tmp_path: Path, method: Any) -> None:
    """Guards all that passes forwards and backwards may leave behind: draws of dropout and of methods, gradients that
    the first step would add to, statistics of a module. Six gigabytes a try: parts of one example are the largest."""
    phase = bench.phase(method, gradient_accumulation="auto", epochs=1)
    run = bench.run(tmp_path / "auto", phase)
    probed = fit(phase, run, Rising(6))
    assert {one["examples"] for one in run.facts[PROBES].values()} == {1}
    assert [key.rpartition("/")[2] for key in run.facts[PROBES]] == [part.name for part in method.parts()]
    by_hand = bench.phase(method, gradient_accumulation=8, epochs=1)
    named = fit(by_hand, bench.run(tmp_path / "named", by_hand))
    for name, value in named.model.state_dict().items():
        assert torch.equal(probed.model.state_dict()[name], value), name


def test_what_this_machine_finds_is_what_its_training_computes(bench: Bench, tmp_path: Path) -> None:
    """The same with the machine's own memory and clock, and with weights that hang on the teacher."""
    phase = bench.phase(KnowledgeDistillation(), gradient_accumulation="auto", weighting=Curriculum())
    said = Recorder()
    run = bench.run(tmp_path / "auto", phase, said)
    probed = fit(phase, run)
    facts = found(run)
    assert [one["examples"] for one in facts["tries"]] == [1, 2, 4, 8]
    assert all(one["fits"] and one["examples_per_second"] > 0 for one in facts["tries"])
    assert facts["tries"][0]["bytes"] < facts["memory"]
    (told,) = (event for event in said.events if event[0] == "batch.probed")
    assert told[1].startswith(f"Student: batches of 8 are computed {facts['examples']} example")
    assert told[2] == facts
    parts = 8 // facts["examples"]
    by_hand = bench.phase(KnowledgeDistillation(), gradient_accumulation=parts, weighting=Curriculum())
    named = fit(by_hand, bench.run(tmp_path / "named", by_hand))
    for name, value in named.model.state_dict().items():
        assert torch.equal(probed.model.state_dict()[name], value), name


def test_a_resumed_training_keeps_the_parts_and_probes_no_more(bench: Bench, tmp_path: Path) -> None:
    """Guards exact resume where the next machine is another one: there every part would fit."""
    method = KnowledgeDistillation()
    by_hand = bench.phase(method, gradient_accumulation=8)
    undisturbed = fit(by_hand, bench.run(tmp_path / "whole", by_hand))
    events: list[str] = []
    # Asked twice by the probe; afterwards all parts would fit, and the clock would choose.
    for stop, memory in ((2 + 3, Rising(6)), (3, Rising(1)), (None, Rising(1))):
        phase, said = bench.phase(method, gradient_accumulation="auto"), Recorder(stop_after=stop)
        run = bench.run(tmp_path / "pieces", phase, said)
        try:
            resumed = fit(phase, run, memory)
        except Interrupted:
            run.commit()
        events += [kind for kind, _, _ in said.events if kind == "batch.probed"]
    assert events == ["batch.probed"]
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_what_was_found_is_saved_before_the_first_step(bench: Bench, tmp_path: Path) -> None:
    """Guards an attempt that dies soon: the next one would choose anew, and compute other parts than it told of."""
    phase, said = bench.phase(FineTuning(), gradient_accumulation="auto"), Recorder(stop_after=5)
    with pytest.raises(Interrupted):  # asked four times by the probe, then before the first step and before the second
        fit(phase, bench.run(tmp_path, phase, said, every=3600))
    assert said.checkpoints == 1
    assert found(bench.run(tmp_path, phase))["examples"] in (1, 2, 4, 8)


def test_a_stop_during_the_probe_leaves_the_training_as_it_was(bench: Bench, tmp_path: Path) -> None:
    phase = bench.phase(FineTuning(), gradient_accumulation="auto")
    run = bench.run(tmp_path, phase, Recorder(stop_after=2))
    with pytest.raises(Interrupted):
        fit(phase, run)
    run.commit()
    assert run.facts[PROBES] == {}
    assert bench.run(tmp_path, phase).store.read_tensors("distilling-training")[1]["position"]["step"] == 0


def test_a_repeat_computes_the_parts_that_the_first_run_found(bench: Bench, tmp_path: Path) -> None:
    phase, said = bench.phase(FineTuning(), gradient_accumulation="auto", epochs=1), Recorder()
    run = bench.run(tmp_path, phase, said)
    run.micro_batches = {"distilling/main": 2}
    fit(phase, run)
    assert (found(run)["examples"], found(run)["tries"]) == (2, [])
    (message,) = (text for kind, text, _ in said.events if kind == "batch.probed")
    assert message == "Student: batches of 8 are computed 2 examples at a time, as in the run that this one repeats"


class _Hungry(FineTuning):
    """Memory runs out above so many examples."""

    most: int = 4

    def build(self, part: Part, models: Models, criterion: Criterion) -> Objective:
        objective = super().build(part, models, criterion)
        inner, most = objective.losses, self.most

        def losses(batch: Batch, step: int, steps: int) -> Mapping[str, Term]:
            if batch.counts["examples"] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return inner(batch, step, steps)

        objective.losses = losses  # type: ignore[method-assign]
        return objective


def test_parts_that_run_out_of_memory_are_not_chosen(bench: Bench, tmp_path: Path) -> None:
    phase = bench.phase(_Hungry(), gradient_accumulation="auto", epochs=1)
    run = bench.run(tmp_path, phase)
    fit(phase, run)
    tries = found(run)["tries"]
    assert [(one["examples"], one["fits"]) for one in tries] == [(1, True), (2, True), (4, True), (8, False)]
    assert tries[-1]["examples_per_second"] is None
    assert found(run)["examples"] <= 4
    phase = bench.phase(_Hungry(most=0), gradient_accumulation="auto")
    with pytest.raises(OutOfMemory, match=r"with 1 example at a time: training\.max_length"):
        fit(phase, bench.run(tmp_path / "none", phase))


@pytest.mark.parametrize("kills", [True, False])
def test_what_would_end_the_process_is_not_even_tried(bench: Bench, tmp_path: Path, kills: bool) -> None:
    """Four gigabytes a try, ten in all. Where the kernel kills, three tries' worth is foreseen from two, and left."""
    phase, memory = bench.phase(FineTuning(), gradient_accumulation="auto", epochs=1), Rising(4, kills=kills)
    run = bench.run(tmp_path, phase)
    fit(phase, run, memory)
    tries = found(run)["tries"]
    assert [(one["examples"], one["fits"]) for one in tries] == [(1, True), (2, True), (4, False)]
    assert (tries[-1]["examples_per_second"] is None) is kills


class Pair(Ranks):
    """One of two ranks, of which the other finds parts of more than two examples too large, and is slower."""

    count = 2

    def sum(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float64:
            return tensor
        self.asked += 1
        theirs = torch.tensor([float(self.asked < 3), 5.0 * GB, 1.0, 0.5], dtype=torch.float64)
        return tensor + theirs

    asked = 0


def test_ranks_agree_on_parts_that_fit_everywhere(bench: Bench, tmp_path: Path) -> None:
    """Guards a rank that runs out of memory with what another one chose, for which all others wait."""
    phase = bench.phase(FineTuning(), gradient_accumulation="auto", epochs=1)
    run = bench.run(tmp_path, phase, Recorder(stop_after=4))
    run.ranks = Pair()
    with pytest.raises(Interrupted):
        fit(phase, run, Rising(1))
    facts = found(run)
    assert [(one["examples"], one["fits"]) for one in facts["tries"]] == [(1, True), (2, True), (4, False)]
    assert [round(one["bytes"] / GB) for one in facts["tries"]] == [3, 4, 4]  # the mean of both
    assert all(one["examples_per_second"] < 8 for one in facts["tries"])


def test_a_whole_job_records_what_it_chose_and_repeats_it(tmp_path: Path) -> None:
    """Teacher, student and baseline each have a probe; the repeat has none, and ends with the same student."""
    teacher, data = write_tiny_bert(tmp_path / "teacher"), write_tiny_dataset(tmp_path / "data", rows=60)
    config = DistillConfig.parse(
        {
            "method": "kd",
            "teacher": {"source": f"path:{teacher}", "finetune": {"epochs": 3, "learning_rate": 5e-3}},
            "dataset": f"path:{data}",
            "student": 2,
            "training": {
                "epochs": 1,
                "batch_size": 8,
                "learning_rate": 3e-3,
                "max_length": 32,
                "gradient_accumulation": "auto",
            },
            "evaluation": {"hard_samples": False},
            "export": [],
        }
    )
    first = distill(config, tmp_path / "first")
    probes = first.scorecard.batch_probes
    assert [one.phase for one in probes] == ["teacher", "distilling", "baseline"]
    assert all(one.tries for one in probes)
    assert Scorecard.model_validate_json(first.scorecard.model_dump_json()) == first.scorecard
    sizes = first.provenance["micro_batches"]
    assert sizes == {f"{one.phase}/main": one.examples for one in probes}
    again = distill(config, tmp_path / "again", micro_batches={**sizes, "distilling/main": 4, "baseline/main": 8})
    assert [(one.examples, one.tries) for one in again.scorecard.batch_probes] == [
        (sizes["teacher/main"], ()),
        (4, ()),
        (8, ()),
    ]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"gradient_accumulation": 0}, "greater than or equal to 1"),
        ({"gradient_accumulation": "most"}, "'auto'"),
        ({"gradient_accumulation": "auto", "devices": 5}, "devices (5) has to divide batch_size (32)"),
        ({"gradient_accumulation": "auto", "sample_weighting": "focal"}, "gradient_accumulation (auto) has to be 1"),
        ({"gradient_accumulation": "auto", "loss": "dist"}, "gradient_accumulation (auto) has to be 1"),
    ],
)
def test_what_goes_with_no_parts_goes_with_no_probe(training: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        DistillConfig.parse({"teacher": "a/b", "dataset": "a/b", "training": training})
    assert any(said in problem.detail for problem in caught.value.problems), caught.value.problems


class Exchanging(Ranks):
    """Counts what this rank would exchange with others, but for what the probe tells them."""

    exchanged = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.exchanged += tensor.dtype != torch.float64
        return tensor


def test_nothing_is_exchanged_during_a_try(bench: Bench, tmp_path: Path) -> None:
    """Guards ranks whose memory runs out at different tries, with unlabelled texts: one would wait for the other."""

    def exchanged(parts: int | Literal["auto"]) -> tuple[int, Run]:
        phase = bench.phase(
            KnowledgeDistillation(),
            gradient_accumulation=parts,
            weighting=Curriculum(by="entropy"),
            labelled=24,
            epochs=1,
        )
        run = bench.run(tmp_path / str(parts), phase)
        run.ranks = ranks = Exchanging()
        fit(phase, run)
        return ranks.exchanged, run

    probed, run = exchanged("auto")
    named, _ = exchanged(8 // found(run)["examples"])
    assert probed == named
    assert named > 0
