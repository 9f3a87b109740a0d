"""The first phase: the teacher's folder and the data set are fetched and checked, and texts become token ids."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck import data, evaluate, preflight, sources
from limbeck.batches import Encoded
from limbeck.callbacks import Stage
from limbeck.config import TASKS, FineTune
from limbeck.device import installed
from limbeck.errors import InvalidConfig, InvalidModel, Problem
from limbeck.run import Run
from limbeck.scorecard import DatasetCard
from limbeck.students import Blueprint, label_order, read_config, student_layers
from limbeck.tasks.base import Task
from limbeck.vocabulary import Vocabulary

if TYPE_CHECKING:
    from limbeck.data import Corpus
    from limbeck.sources import ModelFacts

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the other phases work on."""

    task: Task
    blueprint: Blueprint
    card: DatasetCard
    pair: bool  #: whether an example is two texts
    train: Encoded
    validation: Encoded
    test: Encoded
    layers: tuple[int, ...]  #: of the teacher, that the student starts from
    finetune: FineTune | None
    keep_head: bool  #: whether the teacher's own head is used
    teacher_revision: str | None
    teacher_sha256: str


def prepare(run: Run, given: Mapping[str, Path]) -> Prepared:
    """Fetch, check and encode; what an earlier attempt encoded is read from the state.

    Raises:
        InvalidInput: naming the field, row or label that is wrong.
    """
    run.meter.enter(Stage.PREPARING)
    spec = run.config.teacher
    if (known := run.facts.get("teacher_revision")) is not None:
        spec = spec.model_copy(update={"revision": known})
    teacher = sources.teacher_folder(spec, given)
    facts = sources.model_facts(teacher.path)
    _preflight(run, facts, None, None)
    if not run.store.has("data"):
        _encode(run, teacher.path, facts, given)
        run.facts["teacher_revision"] = teacher.revision
        run.commit()
    tensors, stored = run.store.read_tensors("data")
    card = DatasetCard.model_validate(stored["card"])
    task: Task = run.config.task or TASKS[stored["task"]]()
    vocabulary = Vocabulary(tensors["vocabulary"].numpy(), int(read_config(teacher.path).vocab_size))
    blueprint = Blueprint.read(teacher.path, task, card.labels, vocabulary)
    finetune = _finetune(run, facts, task)
    sha256 = _weights_sha256(teacher.path)
    _say_provenance(run, card, stored["revision"], teacher.revision, sha256)
    train, validation, test = (Encoded.from_tensors(_below(tensors, split)) for split in _SPLITS)
    return Prepared(
        task=task,
        blueprint=blueprint,
        card=card,
        pair=stored["pair"],
        train=train,
        validation=validation,
        test=test,
        layers=student_layers(run.config.student, blueprint.layers),
        finetune=finetune,
        keep_head=facts.has_head_for(task) and _labels_agree(teacher.path, task, card.labels, must=finetune is None),
        teacher_revision=teacher.revision,
        teacher_sha256=sha256,
    )


def _encode(run: Run, teacher: Path, facts: ModelFacts, given: Mapping[str, Path]) -> None:
    seed = run.config.training.seed
    wanted = run.config.task
    corpus = data.load(run.config.dataset, seed=seed, sources=given, task=wanted.type if wanted else None)
    _preflight(run, facts, corpus.labels, corpus.task)
    task: Task = wanted or TASKS[corpus.task]()
    config = read_config(teacher)
    tokenizer = load_tokenizer(teacher, config, task)
    length = run.config.training.max_length
    whole = {name: task.encode(tokenizer, getattr(corpus, name), corpus.labels, length, run.poll) for name in _SPLITS}
    vocabulary = Vocabulary.of(
        whole.values(),
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=int(config.vocab_size),
    )
    tensors = {"vocabulary": torch.from_numpy(vocabulary.kept)}
    for name, split in whole.items():
        tensors |= {f"{name}.{part}": value for part, value in vocabulary.compact(split).tensors().items()}
    card = _card(corpus, task, whole["test"])
    stored = {
        "card": card.model_dump(mode="json"),
        "pair": corpus.train.pairs is not None,
        "revision": corpus.revision,
        "task": corpus.task,
    }
    run.store.write_tensors("data", tensors, stored)
    cut = float(np.mean(whole["train"].lengths >= length))
    classes = f" of {len(card.labels)} labels" if card.labels else ""
    run.event(
        "data.loaded",
        f"{card.train:,} training, {card.validation:,} validation and {card.test:,} test examples{classes}; "
        f"{100 * cut:.1f} % of the training texts fill {length} tokens or are cut there",
        train=card.train,
        validation=card.validation,
        test=card.test,
        labels=len(card.labels),
        tokens=int(whole["train"].lengths.sum()),
        vocabulary=len(vocabulary),
    )


def load_tokenizer(folder: Path, config: Any, task: Task) -> Any:
    """The teacher's tokenizer, which is the student's as well.

    Raises:
        InvalidModel: there is none, it has no Rust form (which the exported student needs), or it is another model's.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **task.tokenizer_options(config.model_type)
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidModel(f"The teacher has no tokenizer that transformers can read: {error}") from error
    if not tokenizer.is_fast:
        raise InvalidModel("The teacher's tokenizer has no tokenizer.json form, which the exported student needs.")
    if len(tokenizer) > config.vocab_size:
        raise InvalidModel(
            f"The tokenizer knows {len(tokenizer)} tokens, the teacher only {config.vocab_size}: "
            "they do not belong together."
        )
    if tokenizer.pad_token_id is None or config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise InvalidModel(
            f"The tokenizer pads with the token {tokenizer.pad_token_id}, the teacher with {config.pad_token_id}: "
            "they do not belong together."
        )
    return tokenizer


def _card(corpus: Corpus, task: Task, test: Encoded) -> DatasetCard:
    truth = task.truth(test)
    return DatasetCard(
        source=corpus.source,
        sha256=corpus.sha256,
        train=len(corpus.train),
        validation=len(corpus.validation),
        test=len(corpus.test),
        labels=corpus.labels,
        majority=evaluate.score(task.main_metric, task.guess(truth), truth),
    )


def _preflight(run: Run, facts: ModelFacts, labels: tuple[str, ...] | None, task: str | None) -> None:
    problems = preflight.check(run.config, teacher=facts, labels=labels, task=task)
    if problems:
        raise InvalidConfig("; ".join(f"{p.pointer}: {p.detail}" for p in problems), problems)


def _finetune(run: Run, facts: ModelFacts, task: Task) -> FineTune | None:
    wanted, has_head = run.config.teacher.finetune, facts.has_head_for(task)
    if isinstance(wanted, FineTune):
        return wanted
    if wanted is False and not has_head:
        detail = f"found false; this teacher has no head for {task.type}, so that it has to be fine-tuned: true"
        raise InvalidConfig(f"/teacher/finetune: {detail}", [Problem("/teacher/finetune", detail)])
    return FineTune() if wanted or not has_head else None


def _labels_agree(teacher: Path, task: Task, labels: tuple[str, ...], *, must: bool) -> bool:
    """Whether the teacher's head answers with the data set's labels; where it ``must``, raises InvalidModel if not."""
    config = read_config(teacher)
    try:
        if not task.named:
            _require_outputs(config.num_labels, task.outputs(labels))
            return True
        label_order([config.id2label[i] for i in range(config.num_labels)], labels)
    except InvalidModel:
        if must:
            raise
        return False
    return True


def _require_outputs(found: int, wanted: int) -> None:
    if found != wanted:
        raise InvalidModel(
            f"The teacher's head has {found} outputs and needs {wanted}; let the job fine-tune it: "
            "teacher.finetune = true."
        )


def _say_provenance(
    run: Run, card: DatasetCard, dataset_revision: str | None, teacher_revision: str | None, teacher_sha256: str
) -> None:
    packages = ("limbeck", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")
    run.provenance(
        dataset={"source": card.source, "revision": dataset_revision, "sha256": card.sha256},
        teacher={"source": run.config.teacher.source, "revision": teacher_revision, "sha256": teacher_sha256},
        seed=run.config.training.seed,
        hardware=run.device.hardware().model_dump(mode="json"),
        python=platform.python_version(),
        packages={name: installed(name) for name in packages},
    )


def _weights_sha256(folder: Path) -> str:
    """Of the one safetensors file, or of the list of several files' hashes."""
    digests = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _below(tensors: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{split}."): value for name, value in tensors.items() if name.startswith(f"{split}.")}
