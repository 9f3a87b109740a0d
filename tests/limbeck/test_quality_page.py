"""What the quality page says of stored cells: differences, aims, seeds and published figures; nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality import by_method
from benchmarks.quality.aims import aims
from benchmarks.quality.grid import Cell, teacher_of
from benchmarks.quality.overview import overview
from benchmarks.quality.page import generated
from benchmarks.quality.paired import add_truths, from_baseline
from benchmarks.quality.papers import papers
from benchmarks.quality.running import Bench
from benchmarks.quality.seeds import fieller, interval, over_seeds
from benchmarks.quality.store import Store, packed
from benchmarks.report import RESULTS
from tests.limbeck.test_quality_grid import HASH, KD, NONE, estimate, result, teacher_result

#: Of 400 examples the baseline gets 320 right.
TRUTH = [0, 1] * 200
BASELINE = [1 - one for one in TRUTH[:80]] + TRUTH[80:]
PATIENT = Cell("sst2", "patient", 3, 0)


def answers(mended: int, spoilt: int) -> list[int]:
    """The baseline's, but for so many of its errors that are right here, and so many others that are wrong here."""
    found = list(BASELINE)
    found[:mended] = TRUTH[:mended]
    found[80 : 80 + spoilt] = [1 - one for one in TRUTH[80 : 80 + spoilt]]
    return found


def student(mended: int, spoilt: int) -> dict[str, Any]:
    right = (320 + mended - spoilt) / 400
    return result(right, baseline=estimate(0.8), predictions=packed(answers(mended, spoilt)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A teacher and a baseline with their answers."""
    found = Store(tmp_path / "results")
    found.write(teacher_of("sst2"), HASH, teacher_result(truth=packed(TRUTH), predictions=packed(TRUTH)))
    found.write(NONE, HASH, result(0.8, predictions=packed(BASELINE)))
    return found


def test_the_difference_from_the_baseline_is_paired(store: Store) -> None:
    """Both have intervals of ±4 points and err on nearly the same examples: 2 points are no noise then."""
    store.write(KD, HASH, student(8, 0))
    found = store.read(KD)
    assert found is not None
    apart = from_baseline(store, KD, found)
    assert apart is not None
    assert apart["value"] == pytest.approx(0.02)
    assert 0 < apart["low"] < 0.02 < apart["high"] < 0.04
    assert "| 82.0 (80.0–84.0) | +2.0 (+" in generated(store)


def test_a_difference_is_of_the_baseline_that_the_cell_names(store: Store) -> None:
    """A baseline that was measured again has other answers than those that the cell's gap recovery is of."""
    store.write(KD, HASH, student(8, 0) | {"baseline": estimate(0.79)})
    found = store.read(KD)
    assert found is not None
    assert from_baseline(store, KD, found) is None
    assert "+3.0 (no interval)" in generated(store)
    own = {"value": 0.01, "low": -0.01, "high": 0.03}
    assert from_baseline(store, KD, found | {"difference": own}) == own


def test_truths_are_added_to_teachers_of_before(tmp_path: Path) -> None:
    """A result gains what the page needs of it and keeps the rest; another split's truth is refused."""
    data = tmp_path / "data"
    (data / "sst2_glue").mkdir(parents=True)
    bench = Bench(data, Store(tmp_path / "results"), tmp_path / "cache")
    teacher = teacher_of("sst2")
    bench.store.write(teacher, bench.hash_of(teacher), teacher_result(predictions=packed(answers(60, 20))))
    before = bench.store.path(teacher).read_text()
    add_truths(bench, ["sst2"])
    assert bench.store.path(teacher).read_text() == before  # no cache, nothing to add
    folder = bench.teacher_folder(teacher)
    folder.mkdir(parents=True)
    (folder / "truth.json").write_text(json.dumps(BASELINE))
    with pytest.raises(ValueError, match="judged by"):
        add_truths(bench, ["sst2"])
    (folder / "truth.json").write_text(json.dumps(TRUTH))
    add_truths(bench, ["sst2"])
    assert json.loads(bench.store.path(teacher).read_text()) == json.loads(before) | {"truth": packed(TRUTH)}


def test_a_speed_up_that_was_deleted_is_said_to_be(store: Store) -> None:
    """A blank would read as if it had never been measured, or as if it were of no interest."""
    assert "¶" not in generated(store)
    store.write(KD, HASH, student(8, 0) | {"speedup": None})
    text = generated(store)
    assert "| taken out ¶ | 3.5 |" in text
    assert "deleted from the JSON by hand" in text


def test_intervals_over_seeds_are_students() -> None:
    """0.1, 0.2, 0.3: mean 0.2, s = 0.1, half = 4.303 · 0.1 / √3."""
    centre, half = interval([0.1, 0.2, 0.3])
    assert centre == pytest.approx(0.2)
    assert half == pytest.approx(0.24843, abs=1e-4)


def test_a_quotient_over_seeds_has_fiellers_interval() -> None:
    """With one gap for all, it is Student's interval of the mean over that gap: (2 ± 4.303 · 1 / √3) / 4. In general
    its ends are where Student's t of won - r · gap is 4.303."""
    low, high = fieller([1, 2, 3], [4, 4, 4]) or (0, 0)
    assert (low, high) == (pytest.approx(-0.12109, abs=1e-5), pytest.approx(1.12109, abs=1e-5))
    won, gaps = [0.011, 0.019, 0.012], [0.031, 0.036, 0.029]
    for end in fieller(won, gaps) or ():
        centre, half = interval([one - end * gap for one, gap in zip(won, gaps, strict=True)])
        assert abs(centre) == pytest.approx(half)
    assert fieller([1, 2, 3], [-1, 1, 3]) is None  # the gap may be 0


def test_seeds_are_paired_by_their_number(tmp_path: Path) -> None:
    """Seeds 0 and 1 of the baseline and 1 and 2 of the student are as many, and one pair."""
    store = Store(tmp_path)
    for seed, value in ((0, 0.80), (1, 0.84)):
        store.write(Cell("sst2", "none", 3, seed), HASH, result(value))
    for seed, value in ((1, 0.86), (2, 0.88)):
        store.write(Cell("sst2", "kd", 3, seed), HASH, result(value))
    assert "| sst2 | kd | 3 | 2 | 87.0 ± 12.7 | 96.7 ± 14.1 |  |  |" in over_seeds(store)
    store.write(Cell("sst2", "none", 3, 2), HASH, result(0.84))
    # Won 2 and 4 points of 6 and 6: 50 %, and 12.706 · √2 / √2 points on each side.
    assert "| 3.0 ± 12.7 | 50 (-162 to 262) |" in over_seeds(store)


def test_a_row_of_the_overview_has_the_means_and_what_they_say(tmp_path: Path) -> None:
    """Guards a first table that holds auto against the baseline of another start, or a longer training for the best."""
    store = Store(tmp_path)
    store.write(teacher_of("sst2"), HASH, teacher_result())
    for method, seed, value in (
        ("none-uniform", 0, 0.80),
        ("kd-soft", 0, 0.83),
        ("kd-soft", 1, 0.81),
        ("none", 0, 0.84),
        ("none", 1, 0.82),
        ("kd", 0, 0.855),
        ("auto", 0, 0.87),
        ("auto", 1, 0.85),
        ("kd-unlabelled", 0, 0.89),
        ("tinybert", 0, 0.86),
    ):
        store.write(Cell("sst2", method, 3, seed), HASH, result(value))
    table = overview(store)
    row = "| sst2 | 3 | 90.0 | 83.0 (2) | 85.5 | 86.0 (2) | 95.6 | 43 | 80.0 | not run | 82.0 (2) | 86.0, `auto` |"
    assert row in table
    assert "| sst2 | 2 | 90.0 | not run | not run | not run |  |  |  |  |  |  |" in table
    store.write(Cell("sst2", "tinybert", 3, 0), HASH, result(0.865))
    assert "86.5, `tinybert` |" in overview(store)


def test_the_aims_are_judged_by_the_cells(store: Store) -> None:
    """An aim that nothing is held against could be missed by everything on the page."""
    assert aims(store).count("| not run |") == 12
    store.write(KD, HASH, result(0.88, baseline=estimate(0.8)))
    store.write(Cell("sst2", "auto", 3, 0), HASH, result(0.84, baseline=estimate(0.8)))
    store.write(Cell("sst2", "noise", 3, 0), HASH, result(0.89, baseline=estimate(0.8)))
    store.write(Cell("snips", "none", 3, 0), HASH, result(0.895))
    store.write(Cell("snips", "kd", 3, 0), HASH, result(0.88, baseline=estimate(0.895)))
    text = aims(store)
    assert "of the teacher: `auto` | 93.3 % | **missed** |" in text
    assert "the best of 2 methods, `kd` | 97.8 % | met |" in text
    assert "under: `kd` | 80.0 % | met |" in text
    assert "under: `auto` | 40.0 % | **missed** |" in text
    assert "| the baseline is 0.5 points under | does not apply |" in text


@pytest.mark.parametrize(
    ("layers", "kept", "verdict", "half"),
    [(3.0, 0.795, "met", 0.3), (3.1, 0.8, "**missed**", 0.9), (2.0, 0.79, "**missed**", 0.3)],
)
def test_early_exit_is_judged_at_half_the_layers_and_at_the_speed_of_dev(
    tmp_path: Path, layers: float, kept: float, verdict: str, half: float
) -> None:
    """A speed that is chosen by what it costs on the reported split keeps there what it was chosen for; by its layers
    it may be chosen there."""
    store = Store(tmp_path)
    curve = [
        {"speed": 0.0, "metric": estimate(0.8), "flops": 1.0, "mean_layers": 6.0},
        {"speed": 0.3, "metric": estimate(kept), "flops": layers / 6, "mean_layers": layers},
        {"speed": 0.9, "metric": estimate(0.8), "flops": 0.1, "mean_layers": 1.0},
    ]
    store.write(Cell("douban", "fastbert", 6, 0), HASH, result(0.8, exits={"curve": curve, "speed": 0.3}))
    judged = aims(store)
    assert f"dev chose | speed 0.3: {layers:.2f} layers for {100 * (0.8 - kept):.1f} points | {verdict} |" in judged
    assert f"with so few | speed {half}: " in judged
    assert f"with {6 / layers:.2f} times fewer at speed 0.3, which dev chose ({layers:.2f} of 6" in papers(store)


def test_published_figures_are_judged_by_our_cells(store: Store) -> None:
    """PKD: 95.1 % of its teacher, 0.6 % above the plain student; the same direction needs an interval above 0."""
    assert "| `patient` | Sun et al. 2019, SST-2, 12 → 3 | 95.1 | +0.6 | sst2, 6 → 3 | not run |" in papers(store)
    for mended, spoilt, judged in (
        (24, 0, "yes | yes |  |"),
        (24, 20, "within the noise | **no** | half of the teacher's"),
        (0, 24, "**no** | **no** | half of the teacher's"),
    ):
        store.write(PATIENT, HASH, student(mended, spoilt))
        over = 100 * (mended - spoilt) / 400 / 0.9
        row = next(line for line in papers(store).splitlines() if line.startswith("| `patient`"))
        assert f"| {over:+.1f} (" in row
        assert judged in row


def test_nothing_published_is_nothing_found(store: Store) -> None:
    """kd and PKD's authors: 87.5 both; the control is as good as the labels alone, or worse."""
    for mended, spoilt, kd, noise in ((20, 20, "yes", "yes"), (0, 30, "**no**", "yes"), (30, 0, "**no**", "**no**")):
        store.write(KD, HASH, student(mended, spoilt))
        store.write(Cell("sst2", "noise", 3, 0), HASH, student(mended, spoilt))
        lines = papers(store).splitlines()
        for begin, judged in (("| `kd` | Sun", kd), ("| `noise` | the seed", noise)):
            row = next(line for line in lines if line.startswith(begin))
            assert row.split(" | ")[7] == judged, row


def test_methods_md_has_a_row_for_each_method(store: Store, tmp_path: Path) -> None:
    """Guards a page that recommends methods by figures of other students than the results page has."""
    store.write(KD, HASH, student(8, 0))
    store.write(PATIENT, HASH, {"failure": "diverged: NaN", "machine": {}})
    page = tmp_path / "methods.md"
    page.write_text("before <!-- methods:begin -->old<!-- methods:end --> after")
    by_method.write_table(store, page)
    text = page.read_text()
    assert "old" not in text
    assert "| the teacher | 6 | not run | 90.0 | not run |" in text
    assert "| kd | 3 | not run | 82.0, +2.0 (+" in text
    assert "| none | 3 | not run | 80.0 | not run |" in text
    assert "| patient | 3 | not run | failed | not run |" in text
    store.write(KD, HASH, student(8, 0) | {"teacher_sha256": "another"})
    by_method.write_table(store, page)
    assert "| kd | 3 | not run | 82.0‡, +2.0 (+" in page.read_text()
    assert "| self | 6 | not run | not run | not run |" in text
    assert "| textbrewer" not in text
    assert "-long" not in text


def test_no_committed_result_says_where_its_machine_had_something() -> None:
    """Guards cards that are committed as they are, with the folders of whoever measured them."""
    found = [path.name for path in RESULTS.rglob("*.json") if '"path:/' in path.read_text(encoding="utf-8")]
    assert found == []
