"""The quality benchmark: its grid, what counts as measured, and the page of stored cells; nothing is trained."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import benchmarks.quality.__main__ as quality
from benchmarks.quality.__main__ import main
from benchmarks.quality.datasets import DATASETS, data_hash
from benchmarks.quality.grid import (
    EVEN,
    LONG,
    PEERS,
    REPLACED,
    STARTS,
    UNLABELLED,
    WIDE,
    Cell,
    cells,
    content_key,
    method_version,
    methods,
    teacher_of,
)
from benchmarks.quality.page import generated, write_page
from benchmarks.quality.peers import matches
from benchmarks.quality.running import Bench, against_baseline, kept_unless_failed
from benchmarks.quality.side_by_side import side_by_side
from benchmarks.quality.store import Store, packed, unpacked
from limbeck.config import DistillConfig
from limbeck.errors import Diverged
from limbeck.shapes import student_layers
from limbeck.student_spec import Student

HASH = "0123456789abcdef"
KD, NONE = Cell("sst2", "kd", 3, 0), Cell("sst2", "none", 3, 0)


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def teacher_result(**changes: Any) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "teacher": estimate(0.9),
        "majority": 0.5,
        "examples": {"train": 8000, "validation": 2000, "test": 872},
        "sha256": "t",
        "total_minutes": 5.0,
        "machine": {"cores": 2, "cpu": "a CPU", "date": "2026-11-24"},
        **changes,
    }


def result(student: float, **changes: Any) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "teacher": estimate(0.9),
        "teacher_sha256": "t",
        "student": estimate(student),
        "retention": estimate(student / 0.9),
        "baseline": None,
        "gap_recovery": None,
        "gap_note": None,
        "speedup": {"1": 1.9, "32": 2.0},
        "total_minutes": 3.5,
        "exits": None,
        "machine": {"cores": 2, "cpu": "a CPU", "date": "2026-11-24"},
        **changes,
    }


def test_the_grid_is_the_one_that_was_asked_for() -> None:
    """A cell that is silently missing would be a method or a task that nobody notices was never measured."""
    names = {cell.name for cell in cells()}
    for dataset in WIDE:
        for method in methods():
            layers = 6 if method == "self" else 3
            assert f"{dataset}/{method}/{layers}L/seed0" in names
        for method in ("auto", "kd", "none"):
            assert {f"{dataset}/{method}/{n}L/seed{seed}" for n in (2, 3) for seed in (0, 1, 2)} <= names
    for dataset in ("rte", "stsb", "goemotions", "snips", "wnut17", "squad", "douban"):
        assert {f"{dataset}/{method}/3L/seed0" for method in ("auto", "kd", "none")} <= names
    assert {"sst2/fastbert/6L/seed0", "douban/fastbert/6L/seed0"} <= names


def test_every_cell_stands_once_and_after_what_it_needs() -> None:
    """A student before its baseline would have no gap recovery."""
    order = [cell.name for cell in cells()]
    assert len(order) == len(set(order))
    place = {name: index for index, name in enumerate(order)}
    for cell in cells():
        assert all(place[needed.name] < place[cell.name] for needed in cell.needs)
        assert cell.is_teacher or teacher_of(cell.dataset) in cell.needs


def test_a_baseline_starts_from_the_layers_that_its_student_starts_from() -> None:
    """Theseus' student is cut from other layers: against the usual baseline its start would count as its merit."""
    for cell in cells():
        baseline = cell.baseline
        if baseline is None:
            continue
        chosen, plain = (_config(one) for one in (cell, baseline))
        assert student_layers(chosen.student, 6) == student_layers(plain.student, 6), cell.name
        assert plain.method.type == "none"
        training = chosen.training
        if cell.method in REPLACED:
            epochs = training.epochs * (1 + training.augmentation[0].copies)
            training = training.model_copy(update={"epochs": epochs, "augmentation": ()})
        assert (plain.student.layers, plain.training) == (chosen.student.layers, training)


def test_a_method_is_measured_from_where_it_starts_by_default() -> None:
    """The cells name their starts: one that is not what users get would be a figure of something else."""
    named = {*EVEN, *UNLABELLED, *STARTS, *(name for name, (plain, _) in LONG.items() if plain in STARTS)}
    for cell in cells():
        if not cell.is_teacher and cell.method not in named:
            chosen = _config(cell)
            unsaid = chosen.method.student(Student(layers=cell.layers), 6)
            assert student_layers(unsaid, 6) == student_layers(chosen.student, 6), cell.name
    assert Cell("sst2", "kd", 3, 0).start == "skip"
    assert Cell("sst2", "auto", 2, 0).start == "uniform"
    assert Cell("sst2", "theseus", 3, 0).start == "first"


def _config(cell: Cell) -> DistillConfig:
    if cell.is_peer:  # its student has the numbers and the start of our kd's
        cell = Cell(cell.dataset, "kd", cell.layers, cell.seed)
    parts = {name: value for name, value in cell.document().items() if name in ("method", "student", "training")}
    return DistillConfig.parse({"teacher": "path:/t", "dataset": "path:/d", **parts})


def test_a_result_counts_for_its_configuration_and_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of other data or other epochs would be shown as this cell's."""
    store = Store(tmp_path)
    assert store.state(KD, HASH) == "not run"
    store.write(KD, HASH, result(0.88))
    assert store.state(KD, HASH) == store.state(KD) == "done"
    assert store.state(KD, "other data") == "not run"
    assert store.state(Cell("sst2", "kd", 3, 1), HASH) == "not run"
    monkeypatch.setitem(DATASETS["sst2"].student, "epochs", 7)  # type: ignore[arg-type]
    assert store.state(KD) == "not run"


def test_changed_code_of_the_method_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(KD, HASH, result(0.88))
    found = json.loads(store.path(KD).read_text())
    store.path(KD).write_text(json.dumps({**found, "method_version": "older"}))
    assert store.state(KD, HASH) == "earlier code"


def test_versions_are_of_the_methods_own_code() -> None:
    """auto is built of kd: where kd changes, auto's figures are of earlier code as well; none's are not."""
    versions = {name: method_version(name) for name in methods()}
    assert versions["theseus"] == versions["theseus-additive"]
    assert len({versions[name] for name in ("none", "kd", "auto", "theseus", "minilm")}) == 5
    assert method_version("none-first") == versions["none"]
    empty = method_version("there is no such method")
    assert empty not in versions.values()


def test_a_run_leaves_alone_what_is_done_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming: a second run over finished cells trains nothing; here it could not, for there is not even a text."""
    data, results = tmp_path / "data", tmp_path / "results"
    (data / "sst2_glue").mkdir(parents=True)
    store, found = Store(results), data_hash(DATASETS["sst2"], data)
    store.write(teacher_of("sst2"), found, teacher_result())
    store.write(NONE, found, result(0.86))
    store.write(KD, found, {"failure": "diverged: NaN", "machine": {}})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(data))
    for only in ("sst2/none/3L/seed0", "sst2/kd/3L/seed0", "sst2/teacher/*"):
        assert main(["--results", str(results), "--only", only]) == 0
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before
    # Time that is over begins nothing, and --limit 0 neither.
    for stop in (["--minutes", "-1"], ["--limit", "0"]):
        assert main(["--results", str(results), "--only", "sst2/auto/3L/seed0", *stop]) == 0
    assert {path.name for path in results.iterdir()} == before.keys()
    assert main(["--results", str(results), "--only", "sst2/kd/3L/*", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "failed" in listed
    assert "not run" in listed


def test_a_student_is_not_measured_where_its_teacher_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every student would train the failing teacher again."""
    data, results = tmp_path / "data", tmp_path / "results"
    (data / "sst2_glue").mkdir(parents=True)
    store, found = Store(results), data_hash(DATASETS["sst2"], data)
    store.write(teacher_of("sst2"), found, {"failure": "teacher_unfit: guesses", "machine": {}})
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(data))
    assert main(["--results", str(results), "--only", "sst2/none/3L/seed0"]) == 1
    assert store.state(NONE, found) == "not run"


def test_runs_beside_each_other_share_the_cells_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards two runs that train the same cell, and one that begins a student whose teacher the other is training."""
    (tmp_path / "data" / "sst2_glue").mkdir(parents=True)
    bench = Bench(tmp_path / "data", Store(tmp_path / "results"), tmp_path / "cache")
    auto, measured = Cell("sst2", "auto", 3, 0), list[str]()

    def measure_in_no_time(bench: Bench, cell: Cell) -> bool:
        measured.append(cell.method)
        bench.store.write(cell, bench.hash_of(cell), result(0.8))
        return True

    def meanwhile(_: float) -> None:  # the other run ends its cells one by one
        cell, _ = others.popitem()
        bench.store.write(cell, bench.hash_of(cell), teacher_result())
        held.pop().close()

    monkeypatch.setattr(quality, "_one", measure_in_no_time)
    monkeypatch.setattr("time.sleep", meanwhile)
    others, held = dict.fromkeys((KD, teacher_of("sst2"))), [ExitStack(), ExitStack()]
    for cell, stack in zip(others, held, strict=True):
        assert stack.enter_context(quality.claimed(bench, cell))
    bench.store.write(NONE, bench.hash_of(NONE), result(0.8))
    chosen = argparse.Namespace(limit=None, minutes=None, retry=False, earlier=False)
    assert quality._run(bench, [KD, auto], chosen) == 0
    assert measured == ["auto"]


def test_a_failed_cell_begins_anew_and_one_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """Guards against code that was mended and shows the old failure, since the run went on from its last step."""
    for error, kept in ((KeyboardInterrupt(), True), (Diverged("NaN"), False)):
        (tmp_path / "work").mkdir(exist_ok=True)
        with pytest.raises(type(error)), kept_unless_failed(tmp_path / "work"):
            raise error
        assert (tmp_path / "work").exists() is kept


def test_unknown_cells_and_missing_data_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(tmp_path / "none"))
    assert main(["--only", "sst2/no-such-method/*", "--results", str(tmp_path)]) == 2
    assert main(["--only", "sst2/kd/*", "--results", str(tmp_path)]) == 2


def test_gap_recovery_is_paired_with_the_recorded_answers(tmp_path: Path) -> None:
    """Ten right of ten by the teacher, 6 by the baseline, 9 by the student: three of the four points are won back."""
    (tmp_path / "sst2_glue").mkdir()
    bench = Bench(tmp_path, Store(tmp_path / "results"))
    truth = [0, 1] * 5
    baseline, student = [1 - one for one in truth[:4]] + truth[4:], [1 - truth[0], *truth[1:]]
    found = bench.hash_of(KD)
    bench.store.write(teacher_of("sst2"), found, teacher_result(predictions=packed(truth)))
    bench.store.write(NONE, found, result(0.6, predictions=packed(baseline)))
    gap = against_baseline(bench, KD, "accuracy", student, truth)
    assert gap["gap_recovery"]["value"] == pytest.approx(0.75)
    assert gap["baseline"] == estimate(0.6)
    assert unpacked(packed([["B-x", "O"], ["O"]])) == [["B-x", "O"], ["O"]]


def test_the_page_shows_what_is_there_what_failed_and_what_was_not_run(tmp_path: Path) -> None:
    """A failure or a gap that the page leaves out would read as if all had gone well."""
    store = Store(tmp_path / "results")
    assert "not run" in generated(store)
    store.write(teacher_of("sst2"), HASH, teacher_result())
    store.write(NONE, HASH, result(0.84))
    store.write(KD, HASH, result(0.87, baseline=estimate(0.84), gap_recovery=estimate(0.5), gap_note="care"))
    store.write(Cell("sst2", "minilm", 3, 0), HASH, {"failure": "invalid_config: a | in it", "machine": {}})
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- quality:begin -->\nold\n<!-- quality:end -->\nafter\n")
    write_page(store, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert (
        "| kd | 3 | 90.0 | 84.0 (82.0–86.0) | 87.0 (85.0–89.0) | +3.0 (no interval) | 96.7 (94.7–98.7) "
        "| 50.0 (48.0–52.0) * | 1.90× / 2.00× | 3.5 |" in text
    )
    assert "| minilm | 3 | failed: invalid_config: a \\| in it |" in text
    sst2 = text[text.index("### sst2") : text.index("### banking77")]
    assert "| auto | 3 | not run |" in sst2


def test_another_teachers_figures_are_marked(tmp_path: Path) -> None:
    """After a lost cache the teacher is trained anew; students of the old one do not quite belong to it. Where both
    answer alike they do: another processor's roundings are no other teacher."""
    store, teacher = Store(tmp_path), teacher_of("sst2")
    store.write_teacher(teacher, HASH, teacher_result(predictions=packed([0, 1])))
    store.write(KD, HASH, result(0.87))
    store.write(Cell("sst2", "auto", 3, 0), HASH, result(0.88, teacher_sha256="again"))
    assert "| kd | 3 |" in generated(store)
    assert "| auto‡ | 3 |" in generated(store)
    for _ in range(2):
        store.write_teacher(teacher, HASH, teacher_result(predictions=packed([0, 1]), sha256="again", majority=0.4))
    found = store.read(teacher)
    assert found is not None
    assert (found["sha256"], found["alike"], found["majority"]) == ("t", ["again"], 0.5)
    assert "| auto | 3 |" in generated(store)
    store.write_teacher(teacher, HASH, teacher_result(predictions=packed([1, 1]), sha256="new"))
    assert "| kd‡ | 3 |" in generated(store)
    assert "| auto‡ | 3 |" in generated(store)


@pytest.mark.parametrize(("again", "stays"), [([0.0, 5.0001], True), ([0.0, 5.001], False), ([0.0, 5.0, 1.0], False)])
def test_numbers_are_alike_to_a_ten_thousandth_of_their_range(tmp_path: Path, again: list[float], stays: bool) -> None:
    """Another processor moves every number in its last bits: held to them, each machine's teacher would be another."""
    store, teacher = Store(tmp_path), teacher_of("stsb")
    store.write_teacher(teacher, HASH, teacher_result(predictions=packed([0.0, 5.0])))
    store.write_teacher(teacher, HASH, teacher_result(predictions=packed(again), sha256="again"))
    found = store.read(teacher)
    assert found is not None
    assert (found["sha256"] == "t") is stays
    assert (found.get("alike") == ["again"]) is stays


def test_the_other_trainers_cells_leave_the_others_as_they_are() -> None:
    """A key that changes throws away a night of cells; this one is of a cell that was committed before."""
    assert content_key(NONE, "2ee93e6e41c8b4b6") == "696d3ff753da1803"
    assert content_key(KD, "2ee93e6e41c8b4b6") == "e0043474481b21a8"
    for dataset in WIDE:
        for peer in PEERS:
            assert {Cell(dataset, peer, 3, seed) for seed in (0, 1, 2)} <= set(cells())
    versions = {method_version(name) for name in (*PEERS, "kd", "there is no such method")}
    assert len(versions) == 3  # both of TextBrewer's are run by the same scripts


def test_the_other_trainer_matches_the_last_state_with_the_last() -> None:
    """Hidden state 0 is the embeddings: layer 1 of the teacher (from 0) ends in its state 2."""
    pairs = [(one["layer_S"], one["layer_T"]) for one in matches(3, 6, "hidden_mse")]
    assert pairs == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_our_students_stand_beside_theirs(tmp_path: Path) -> None:
    """Nine of ten against seven: two points of ten above, on the same examples; another teacher's is not compared."""
    store, truth = Store(tmp_path), [0, 1] * 5
    worse, better = [1 - one for one in truth[:3]] + truth[3:], [1 - truth[0], *truth[1:]]
    assert "Not run yet: `mrpc/textbrewer-kd/3L/seed0`" in side_by_side(store)
    theirs = result(0.7, predictions=packed(worse), truth=packed(truth))
    store.write(Cell("sst2", "textbrewer-kd", 3, 0), HASH, theirs)
    assert "| sst2 | 0 | textbrewer-kd | 70.0 | kd | not run |" in side_by_side(store)
    store.write(KD, HASH, result(0.9, predictions=packed(better)))
    store.write(Cell("sst2", "auto", 3, 0), HASH, result(0.9, predictions=packed(better), teacher_sha256="other"))
    text = side_by_side(store)
    assert "| sst2 | 0 | textbrewer-kd | 70.0 | kd | 90.0 | +20.0 (" in text
    assert "| auto | 90.0 | of another teacher |" in text
    store.write(Cell("mrpc", "textbrewer-kd", 3, 0), HASH, {**theirs, "predictions": packed(truth)})
    store.write(Cell("mrpc", "kd", 3, 0), HASH, result(0.0, predictions=packed([1 - one for one in truth])))
    assert "-100.0 (-100.0 to -100.0) | **no** |" in side_by_side(store)
    # They stand in a table of their own.
    assert "| textbrewer-kd | 3 |" not in generated(store)


def test_what_each_seed_leaves_open_all_of_them_may_not(tmp_path: Path) -> None:
    """Guards against "reached" three times over a student that is a point under with each of three seeds."""
    store, truth = Store(tmp_path), [0, 1] * 50
    for seed, ours in enumerate((0.78, 0.79, 0.77)):
        for method, value in (("kd", ours), ("auto", 0.8 - (seed - 1) / 50), ("textbrewer-kd", ours + 0.01)):
            wrong = round(100 * (1 - value))
            answers = packed([1 - one for one in truth[:wrong]] + truth[wrong:])
            found = result(value, predictions=answers, truth=packed(truth))
            store.write(Cell("sst2", method, 3, seed), HASH, found)
    text = side_by_side(store)
    assert "| sst2 | 2 | textbrewer-kd | 78.0 | kd | 77.0 | -1.0 (-3.0 to +0.0) | yes |" in text
    assert "| sst2 | all 3 | textbrewer-kd | 79.0 | kd | 78.0 | -1.0 ± 0.0 | **no** |" in text
    # By hand: 3, 0 and 0 above, mean 1 and 4.303 · 1.732 / 1.732 on either side.
    assert "| sst2 | all 3 | textbrewer-kd | 79.0 | auto | 80.0 | +1.0 ± 4.3 | yes |" in text


def test_a_cell_of_more_epochs_is_held_against_a_baseline_of_as_many() -> None:
    """Guards against a recipe of 15 epochs that is praised for being longer than its baseline's three."""
    long = Cell("mrpc", "theseus-long", 3, 0)
    baseline = long.baseline
    assert baseline == Cell("mrpc", "none-first-long", 3, 0)
    assert baseline.is_baseline
    short = Cell("mrpc", "theseus", 3, 0)
    assert short.baseline == Cell("mrpc", "none-first", 3, 0)
    wanted = {**short.document()["training"], "epochs": 15}
    assert long.document() == {**short.document(), "training": wanted}
    alone = {"method": {"type": "none"}, "student": {"layers": 3, "init": "first"}}
    assert baseline.document() == {**long.document(), **alone}
    assert method_version("theseus-long") == method_version("theseus")
    assert method_version("none-first-long") == method_version("none")
    assert long.cost() > 3 * short.cost()
