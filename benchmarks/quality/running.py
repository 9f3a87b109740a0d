"""Measure a cell: the shared teacher, a student from it, and what the student won back of the baseline's gap."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.differences import paired_difference
from benchmarks.quality.datasets import data_hash, folder_of, unlabelled_of
from benchmarks.quality.grid import UNLABELLED, Cell, teacher_of
from benchmarks.quality.store import Store, packed, unpacked
from benchmarks.report import machine
from limbeck import evaluate
from limbeck.callbacks import Callbacks, Progress, Stage
from limbeck.config import DistillConfig
from limbeck.engine import distill
from limbeck.errors import LimbeckError, TeacherUnfit
from limbeck.exporting import write_folder
from limbeck.outcome import evaluate_model
from limbeck.phases import plan
from limbeck.preparation import Prepared, prepare
from limbeck.run import JOURNAL, Run
from limbeck.scorecard import Scorecard
from limbeck.teacher_cache import TeacherCache
from limbeck.teaching import ready_teacher

CACHE = Path(__file__).parent.parent / ".cache" / "quality"
_START = "builtin:minilm-l6"
_CHINESE = {"layers": 6, "width": 256, "heads": 4, "positions": 128}


class Teller(Callbacks):
    """Says on stderr what the engine is at."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = -10.0
        #: That a pass of the teacher took in another cell, whose answers this one found.
        self.seconds_saved = 0.0

    def on_stage(self, stage: Stage) -> None:
        self._say(f"stage {stage}")

    def on_event(self, kind: str, message: str, data: Mapping[str, Any]) -> None:
        if kind == "cache.used":
            self.seconds_saved += data["seconds_saved"]
        if kind != "checkpoint.saved":
            self._say(message)

    def on_progress(self, progress: Progress) -> None:
        if progress.percent - self._last >= 10:
            self._last = progress.percent
            left = f", {progress.eta_seconds:.0f} s left" if progress.eta_seconds is not None else ""
            self._say(f"{progress.percent:.0f} %{left}")

    def _say(self, text: str) -> None:
        print(f"[{self._name}] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Bench:
    """Where data, models and results lie."""

    data: Path
    store: Store
    cache: Path = CACHE

    def hash_of(self, cell: Cell) -> str:
        return data_hash(cell.data, self.data)

    def dataset(self, cell: Cell) -> dict[str, Any]:
        """``dataset`` of the configuration, and ``task`` where the data cannot tell."""
        folder = folder_of(cell.data, self.data, self.cache)
        found: dict[str, Any] = {"dataset": {"source": f"path:{folder}", "columns": dict(cell.data.columns)}}
        return found | ({"task": cell.data.task} if cell.data.task else {})

    def teacher_config(self, cell: Cell) -> DistillConfig:
        """A job whose teacher is the data set's; its student, of all layers, is never trained."""
        source = f"path:{self._chinese_start()}" if cell.data.chinese else _START
        return DistillConfig.parse(
            {
                "teacher": {"source": source, "finetune": dict(cell.data.teacher)},
                **self.dataset(cell),
                "student": {"layers": 6},
                "method": "none",
                "training": {**cell.data.student, "seed": 0},
                "export": [],
            }
        )

    def teacher_folder(self, cell: Cell) -> Path:
        """Named by what a teacher hangs on, not by the whole configuration: a field that a later version adds does not
        have every teacher trained again, which would make all cells before it those of another teacher."""
        teacher = teacher_of(cell.dataset)
        start: Any = _CHINESE if cell.data.chinese else _START
        identity = json.dumps({"start": start, **teacher.document(), "data": self.hash_of(teacher)}, sort_keys=True)
        return self.cache / "teachers" / f"{cell.dataset}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def config(self, cell: Cell) -> DistillConfig:
        """The job of a student's cell."""
        document = cell.document()
        own = cell.method == "self"
        training = dict(document["training"])
        if cell.method in UNLABELLED:
            texts = unlabelled_of(cell.data, self.data, self.cache)
            training["augmentation"] = {**training["augmentation"], "source": f"path:{texts}"}
        method = "kd" if cell.is_peer else document["method"]  # a peer's data is prepared as that of its rival
        teacher = self.teacher_config(cell).teacher.model_dump() if own else f"path:{self.teacher_folder(cell)}"
        return DistillConfig.parse(
            {
                "teacher": teacher,
                **self.dataset(cell),
                "student": document["student"],
                "method": method,
                "training": training,
                "evaluation": {"baseline": cell.has_own_baseline, "hard_samples": False},
                "export": ["onnx"] if cell.method == "fastbert" else [],
            }
        )

    def workdir(self, cell: Cell, config: DistillConfig) -> Path:
        """Where a cell that was cut off goes on; of each configuration another."""
        digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
        return self.cache / "work" / f"{self.store.path(cell).stem}-{digest}"

    def _chinese_start(self) -> Path:
        """A BERT of random weights with the Chinese vocabulary, the same each time."""
        import gzip

        import torch
        from transformers import BertConfig, BertModel, BertTokenizerFast

        folder = self.cache / "chinese-start"
        if (folder / "model.safetensors").exists():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        source = self.data / "vocab" / "bert-base-chinese-vocab.txt"
        packed_form = source.with_name(f"{source.name}.gz")
        text = source.read_text(encoding="utf-8") if source.exists() else gzip.open(packed_form, "rt").read()
        (folder / "vocab.txt").write_text(text, encoding="utf-8")
        tokenizer = BertTokenizerFast.from_pretrained(str(folder))
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=_CHINESE["width"],
                num_hidden_layers=_CHINESE["layers"],
                num_attention_heads=_CHINESE["heads"],
                intermediate_size=4 * _CHINESE["width"],
                max_position_embeddings=_CHINESE["positions"],
            )
        )
        tokenizer.save_pretrained(str(folder))
        model.save_pretrained(str(folder))
        return folder


@contextmanager
def prepared(config: DistillConfig, workdir: Path, name: str) -> Iterator[tuple[Run, Prepared]]:
    """The data as the engine sees it, for what is not one of its own phases."""
    run = Run(config, workdir, Teller(name), 60.0)
    job = prepare(run, {})
    plan(run, job, {}, 0)
    yield run, job


@contextmanager
def kept_unless_failed(workdir: Path) -> Iterator[None]:
    """A run that was cut off goes on from its folder; one that failed would fail again there, by code that has been
    mended as well."""
    try:
        yield
    except LimbeckError:
        shutil.rmtree(workdir, ignore_errors=True)
        raise


def ensure_teacher(bench: Bench, cell: Cell) -> Path:
    """The fine-tuned teacher of a cell's data set as a folder; trained where it is not there, and then recorded.

    One that was recorded before stays: where the new one answers every reported example as it does (another processor
    rounds otherwise, in the last bits), its hash is added to the record as ``alike``; where it does not, it takes its
    place, and the students of the other are marked.
    """
    teacher = teacher_of(cell.dataset)
    folder = bench.teacher_folder(teacher)
    if (folder / "truth.json").exists() and bench.store.read(teacher, bench.hash_of(teacher)) is not None:
        return folder
    config = bench.teacher_config(teacher)
    workdir = bench.workdir(teacher, config)
    with kept_unless_failed(workdir), prepared(config, workdir, teacher.name) as (run, job):
        weights = ready_teacher(run, job)
        model = run.device.place(job.build("teacher", weights))
        run.meter.begin("evaluate-teacher")
        found = evaluate_model("teacher", model, job, run)
        run.meter.finish("evaluate-teacher")
        write_folder(job.build("teacher", weights), folder, job, run.config)
        metric, truth = job.task.main_metric, job.task.truth(job.test)
        minutes = sum(run.meter.state()["seconds"].values()) / 60  # of all attempts
        estimate = evaluate.bootstrap(metric, found.predictions, truth, seed=0)
        as_json = truth.tolist() if hasattr(truth, "tolist") else [list(one) for one in truth]
        record = {
            "metric": metric,
            "teacher": estimate.model_dump(),
            "validation": found.validation[metric],
            "majority": job.card.majority,
            "examples": {"train": job.card.train, "validation": job.card.validation, "test": job.card.test},
            "sha256": sha256_of(folder / "model.safetensors"),
            "total_minutes": round(minutes, 2),
            "machine": machine(),
            "predictions": packed(found.predictions),
            "truth": packed(as_json),
        }
        bench.store.write_teacher(teacher, bench.hash_of(teacher), record)
    (folder / "truth.json").write_text(json.dumps(as_json, ensure_ascii=False))
    shutil.rmtree(workdir)
    return folder


def measure(bench: Bench, cell: Cell) -> None:
    """Measure a student's cell and record it; whatever it needs has been measured before.

    Raises:
        LimbeckError: the method does not serve here, or its training failed.
    """
    folder = ensure_teacher(bench, cell)
    truth = json.loads((folder / "truth.json").read_text())
    config = bench.config(cell)
    workdir = bench.workdir(cell, config)
    teller = Teller(cell.name)
    with kept_unless_failed(workdir):
        card, answered = _distilled(config, workdir, teller, TeacherCache(bench.cache / "answers"))
        if card.retention is None:
            raise TeacherUnfit(str(card.retention_note))
    metric, predictions = card.main_metric, answered["student"]
    own = card.baseline.metrics[metric].model_dump() if card.baseline is not None else None
    gap = card.gap_recovery.model_dump() if card.gap_recovery else None
    found = {
        "metric": metric,
        "task": card.task,
        "teacher": card.teacher.metrics[metric].model_dump(),
        "teacher_sha256": sha256_of(folder / "model.safetensors"),
        "student": card.student.metrics[metric].model_dump(),
        "validation": card.student.validation[metric],
        "parameters": card.student.parameters,
        "retention": card.retention.model_dump(),
        "baseline": own,
        "difference": own
        and paired_difference(metric, ours=predictions, theirs=answered["baseline"], truth=truth, seed=cell.seed),
        "gap_recovery": gap,
        "gap_note": card.gap_recovery_note,
        "speedup": card.speedup,
        "minutes": card.minutes,
        # Of all attempts, with the teacher's pass as if no other cell had needed it.
        "total_minutes": round(sum(card.minutes.values()) + teller.seconds_saved / 60, 2),
        "exits": card.exits.model_dump(mode="json") if card.exits else None,
        "machine": machine(),
        "predictions": packed(predictions),
    }
    found |= against_baseline(bench, cell, metric, predictions, truth)
    bench.store.write(cell, bench.hash_of(cell), found)
    shutil.rmtree(workdir)


def against_baseline(bench: Bench, cell: Cell, metric: str, predictions: Any, truth: Any) -> dict[str, Any]:
    """Gap recovery from the baseline's and the teacher's recorded answers, paired."""
    if cell.baseline is None:
        return {}
    data = bench.hash_of(cell)
    baseline, teacher = bench.store.read(cell.baseline, data), bench.store.read(teacher_of(cell.dataset), data)
    if baseline is None or teacher is None or "failure" in baseline:
        return {"baseline": None, "gap_recovery": None, "gap_note": f"{cell.baseline.name} is missing"}
    found = evaluate.gap_recovery(
        metric,
        student=predictions,
        teacher=unpacked(teacher["predictions"]),
        baseline=unpacked(baseline["predictions"]),
        labels=truth,
        seed=cell.seed,
    )
    return {
        "baseline": baseline["student"],
        "gap_recovery": found.estimate.model_dump() if found.estimate else None,
        "gap_note": found.note,
    }


def _distilled(
    config: DistillConfig, workdir: Path, teller: Teller, answers: TeacherCache
) -> tuple[Scorecard, dict[str, list[Any]]]:
    """A distillation that goes on where it was cut off, and what each of its models answers to the test split."""
    card = distill(config, workdir, callbacks=teller, teacher_cache=answers).scorecard
    from limbeck.checkpoint import CheckpointStore

    journal = CheckpointStore(workdir / "state").read_json(JOURNAL)
    return card, {name: one["predictions"] for name, one in journal["facts"]["evaluations"].items()}


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
