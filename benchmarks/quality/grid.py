"""Which cells there are, in which order they are measured, how each is configured, and what it is likely to take."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from benchmarks.quality.datasets import DATASETS, DataSet
from benchmarks.report import ROOT
from limbeck import config as limbeck_config
from limbeck.config import DistillConfig
from limbeck.shapes import default_start
from limbeck.student_spec import Student

BASICS = ("none", "kd", "auto")
#: Cells of one method with other options than its own defaults.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "theseus-additive": {"type": "theseus", "replacing": "additive"},
    "theseus-constant": {"type": "theseus", "replacing": "constant", "base": 0.5},
}
#: What ``kd`` was by its defaults until they were changed (docs/adr/0013): a tenth of the weight on the labels, and
#: evenly spread layers as the start. ``kd-uniform`` has that start alone.
SOFT: Mapping[str, Any] = {"type": "kd", "temperature": 4.0, "alpha": 0.9}
#: ``kd-soft`` without a temperature, where there are many classes: at T = 4 a sure teacher's answer over 70 of them is
#: nearly even, so that a student has to match the logits of them all.
EVEN: Mapping[str, Mapping[str, Any]] = {
    "kd-soft": SOFT,
    "kd-uniform": {"type": "kd"},
    "kd-t1": {**SOFT, "temperature": 1.0},
}
MANY = ("snips", "wnut17")
_OPTIONS: Mapping[str, Mapping[str, Any]] = {**VARIANTS, **EVEN}
WIDE = ("mrpc", "sst2", "banking77")
OTHERS = tuple(name for name in DATASETS if name not in WIDE)
CURVES = ("sst2", "douban")
SEEDS = (0, 1, 2)
#: Baselines whose student starts from other layers than by default, by what a configuration calls that start.
STARTS: Mapping[str, str] = {f"none-{start}": start for start in ("first", "last", "uniform", "skip")}
#: Another number of epochs than the other cells of a data set have: what a method is otherwise, and how many. The
#: baseline has as many. Ten are what a user may take who has the time; 15 has a paper on MRPC.
_EPOCHS: Mapping[str, int] = {"ten": 10, "long": 15}
LONG: Mapping[str, tuple[str, int]] = {
    **{f"{name}-ten": (name, _EPOCHS["ten"]) for name in BASICS},
    **{f"{name}-long": (name, _EPOCHS["long"]) for name in ("none-first", "theseus")},
}
#: As many steps as in ten epochs, over each text and its copies with other words, whose labels nobody knows: what a
#: method is otherwise. The baseline has ten epochs of the texts themselves.
REPLACED: Mapping[str, str] = {f"{name}-replaced": name for name in ("kd", "auto")}
_COPIES = 4
#: Where fine-tuning alone leaves more than a point to win back, but for SQuAD (takes hours) and RTE (is noise).
BEHIND = ("stsb", "mrpc", "wnut17")
#: ``kd-soft`` that also learns the teacher's answers to so many other texts of train, whose labels it does not see:
#: one epoch over both, and a baseline of its own that takes as many steps over the labelled ones.
UNLABELLED: Mapping[str, int] = {"kd-unlabelled": 32_000}
#: Another trainer's students (``benchmarks/quality/peers.py``), with the numbers of our ``kd``. Its examples match the
#: embeddings and every layer by their mean squared error, each with weight 1.
PEERS: Mapping[str, Mapping[str, Any]] = {
    "textbrewer-kd": {"trainer": "textbrewer 0.2.1", "temperature": 3.0, "alpha": 0.5},
    "textbrewer-kd-hidden": {"trainer": "textbrewer 0.2.1", "temperature": 3.0, "alpha": 0.5, "hidden": "hidden_mse"},
}
#: The teacher's layers, and what a step costs beside those of the student, in student's layers; for the estimate.
_DEEP = 6
#: Stands for the folder of a data set's further texts, which lies where a machine has its cache.
_ELSEWHERE = "/unlabelled"
_MATCHING = {"patient", "distilbert", "tinybert", "minilm", "auto", "theseus", *VARIANTS}


def methods() -> tuple[str, ...]:
    """Every method that a configuration knows, by name: those that are added later are measured without a line here."""
    union = get_args(get_args(limbeck_config.Method)[0])
    names = [get_args(one)[0].model_fields["type"].default for one in union]
    rest = [name for name in names if name not in BASICS]
    return (*BASICS, *rest, *VARIANTS)


@dataclass(frozen=True)
class Cell:
    """One training and its measurement; a data set's teacher is a cell as well."""

    dataset: str
    method: str
    layers: int
    seed: int

    @property
    def name(self) -> str:
        """E.g. ``sst2/kd/3L/seed0``; what ``--only`` matches."""
        return f"{self.dataset}/{self.method}/{self.layers}L/seed{self.seed}"

    @property
    def data(self) -> DataSet:
        return DATASETS[self.dataset]

    @property
    def is_teacher(self) -> bool:
        return self.method == "teacher"

    @property
    def is_peer(self) -> bool:
        """Whether another trainer than Limbeck trains the student."""
        return self.method in PEERS

    @property
    def baseline(self) -> Cell | None:
        """The cell of the same student without a teacher."""
        if self.is_teacher or self.is_baseline or self.has_own_baseline:
            return None
        start = self.start
        name = "none" if start == default_start(self.layers, _DEEP) else f"none-{start}"
        longer = "-ten" if self.method in REPLACED else self.method.removeprefix(self.plain)
        return Cell(self.dataset, f"{name}{longer}", self.layers, self.seed)

    @property
    def plain(self) -> str:
        """The method, however long and on whatever copies it is trained."""
        if self.method in REPLACED:
            return REPLACED[self.method]
        return LONG[self.method][0] if self.method in LONG else self.method

    @property
    def start(self) -> str:
        """Which of the teacher's layers the student begins as."""
        if self.plain in STARTS:
            return STARTS[self.plain]
        if self.method in EVEN or self.method in UNLABELLED:
            return "uniform"
        own = "none" if self.is_peer else self.plain
        return _start(own, self.layers) or default_start(self.layers, _DEEP)

    @property
    def options(self) -> dict[str, Any]:
        """The method's, all of them: a default that is changed one day makes another cell of it."""
        return _options("none" if self.is_baseline else self.plain)

    @property
    def has_own_baseline(self) -> bool:
        """Whether the same job trains the baseline: of ``self``, whose student is no cut of the teacher, and where
        there are more texts than elsewhere."""
        return self.method == "self" or self.method in UNLABELLED

    @property
    def is_baseline(self) -> bool:
        return self.plain == "none" or self.plain in STARTS

    @property
    def needs(self) -> tuple[Cell, ...]:
        """Cells that have to be measured before this one."""
        if self.is_teacher:
            return ()
        baseline = self.baseline
        return (teacher_of(self.dataset), *(() if baseline is None else (baseline,)))

    def document(self) -> dict[str, Any]:
        """The job's configuration but for where teacher and data lie."""
        data = self.data
        if self.is_teacher:
            return {"finetune": dict(data.teacher), "training": dict(data.student), "layers": _DEEP}
        if self.is_peer:
            return {
                "peer": dict(PEERS[self.method]),
                "student": {"layers": self.layers, "init": self.start},
                "training": {**data.student, "seed": self.seed},
                "teacher": dict(data.teacher),
            }
        student = {"layers": self.layers, "init": self.start}
        training = {**self._training, "seed": self.seed}
        if self.method in UNLABELLED:
            texts = {"type": "unlabelled", "limit": UNLABELLED[self.method], "source": f"path:{_ELSEWHERE}"}
            training |= {"epochs": 1, "augmentation": texts}
        return {"method": self.options, "student": student, "training": training, "teacher": dict(data.teacher)}

    @property
    def _training(self) -> Mapping[str, Any]:
        if self.method in LONG:
            return {**self.data.student, "epochs": LONG[self.method][1]}
        if self.method in REPLACED:
            copies = {"type": "mask_replace", "copies": _COPIES, "keep_labels": False}
            return {**self.data.student, "epochs": _EPOCHS["ten"] // (1 + _COPIES), "augmentation": copies}
        return self.data.student

    def cost(self) -> float:
        """Work in millions of examples × tokens × layers; what a unit takes follows from the cells that are done.

        Every epoch answers dev as well, forward only; what an example costs beside its tokens stands for ten of them.
        """
        data = self.data
        held = data.held or min(2000, data.examples // 10)
        each = (data.examples + held / 3) * (data.tokens + 10) / 1e6
        if self.is_teacher:
            return each * _DEEP * 1.2 * data.teacher["epochs"]
        epochs = self._training["epochs"] * (1 + _COPIES if self.method in REPLACED else 1)
        if self.method == "self":
            return each * _DEEP * 1.2 * (2 * epochs + data.teacher["epochs"])
        if self.method in UNLABELLED:
            more = UNLABELLED[self.method] * (data.tokens + 10) / 1e6
            return (each + more) * (2 * 1.2 * self.layers + _DEEP / 3)
        if self.is_peer:  # asks its teacher in every step, and pads batches of any length
            return each * 2 * (1.2 * self.layers + _DEEP / 3) * epochs
        matching = _DEEP / 3 * epochs if self.plain in _MATCHING else _DEEP / 3
        return each * (1.2 * self.layers * epochs + (0 if self.is_baseline else matching))


@cache
def _chosen(method: str) -> Any:
    """The method as a configuration has it."""
    named = SOFT if method in UNLABELLED else _OPTIONS.get(method, method)
    return DistillConfig.parse({"teacher": "path:/", "dataset": "path:/", "method": named}).method


def _options(method: str) -> dict[str, Any]:
    found: dict[str, Any] = _chosen(method).model_dump(mode="json")
    return found


@cache
def _start(method: str, layers: int) -> str | None:
    """The start that the method itself asks for."""
    start: str | None = _chosen(method).student(Student(layers=layers), _DEEP).init
    return start


def teacher_of(dataset: str) -> Cell:
    """The one teacher that all cells of a data set share."""
    return Cell(dataset, "teacher", _DEEP, 0)


def cells() -> list[Cell]:
    """The whole grid in the order in which it is measured: the cheapest and most telling first."""
    wanted: list[Cell] = []

    def add(dataset: str, names: Iterable[str], layers: int = 3, seeds: Iterable[int] = (0,)) -> None:
        wanted.extend(Cell(dataset, name, layers, seed) for seed in seeds for name in names)

    rest = [name for name in methods() if name not in (*BASICS, "self")]
    add("mrpc", BASICS)
    add("sst2", BASICS)
    add("mrpc", rest)
    add("banking77", BASICS)
    add("sst2", rest)
    add("mrpc", BASICS, seeds=SEEDS[1:])
    add("sst2", BASICS, seeds=SEEDS[1:])
    add("banking77", rest)
    add("banking77", BASICS, seeds=SEEDS[1:])
    for dataset in WIDE:
        add(dataset, BASICS, layers=2)
    for dataset in OTHERS:
        add(dataset, BASICS)
    for dataset in CURVES:
        wanted.append(Cell(dataset, "fastbert", _DEEP, 0))
    for dataset in DATASETS:
        add(dataset, ("none-uniform", "kd-soft"))
    for dataset in (*WIDE, *MANY, "goemotions"):
        add(dataset, ("kd-uniform",))
    for dataset in MANY:
        add(dataset, ("kd-t1",))
    for dataset in BEHIND:
        add(dataset, [f"{name}-ten" for name in BASICS])
    for dataset in ("stsb", "mrpc"):
        add(dataset, REPLACED)
    add("mrpc", ("none-first-long", "theseus-long"))
    add("sst2", UNLABELLED, seeds=SEEDS)
    for dataset in WIDE:
        # Teacher and student have the same size: a student of 3 layers is none of self.
        wanted.append(Cell(dataset, "self", _DEEP, 0))
    for dataset in WIDE:
        add(dataset, BASICS, layers=2, seeds=SEEDS[1:])
    for dataset in ("sst2", "mrpc", "banking77"):
        add(dataset, PEERS, seeds=SEEDS)
    return _with_needs(wanted)


def _with_needs(wanted: Iterable[Cell]) -> list[Cell]:
    ordered: dict[Cell, None] = {}

    def place(cell: Cell) -> None:
        for one in cell.needs:
            place(one)
        ordered.setdefault(cell)

    for cell in wanted:
        place(cell)
    return list(ordered)


def content_key(cell: Cell, data: str) -> str:
    """Of everything that a cell is configured by: another key is another measurement."""
    text = json.dumps({"cell": cell.name, "document": cell.document(), "data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def method_version(name: str) -> str:
    """Of a method's code and that of the methods that it is made of, without comments and docstrings; of another
    trainer's students, of the scripts that call it."""
    if name in PEERS:
        scripts = sorted((ROOT / "benchmarks" / "peers" / "inside").glob("*.py"))
        used = (path for path in scripts if path.stem != "by_trainer")
        return _digest(_code(ast.parse(path.read_text())) for path in used)
    chosen = {key: str(value["type"]) for key, value in _OPTIONS.items()} | dict.fromkeys((*STARTS, "teacher"), "none")
    chosen |= dict.fromkeys(UNLABELLED, "kd")
    plain = LONG[name][0] if name in LONG else REPLACED.get(name, name)
    method = chosen.get(plain, plain)
    folder, seen = ROOT / "limbeck" / "methods", {}
    todo = [path for path in sorted(folder.glob("*.py")) if _defines(path, method)]
    while todo:
        path = todo.pop()
        if path.stem in seen or path.stem in ("base", "__init__"):
            continue
        tree = ast.parse(path.read_text())
        seen[path.stem] = _code(tree)
        todo += [folder / f"{stem}.py" for stem in _siblings(tree)]
    return _digest(seen[stem] for stem in sorted(seen))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _defines(path: Path, method: str) -> bool:
    return f'type: Literal["{method}"]' in path.read_text()


def _siblings(tree: ast.Module) -> list[str]:
    found = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return [module.rpartition(".")[2] for module in found if module.startswith("limbeck.methods.")]


def _code(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
