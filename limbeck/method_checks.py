"""What a method with its options asks of a job, beside the facts of its class (``limbeck/methods/base.py``).

Imports no torch: the API process refuses what cannot work before anybody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from limbeck import shapes
from limbeck.errors import Problem
from limbeck.methods.distilbert import DistilBERT
from limbeck.methods.fastbert import FastBert
from limbeck.methods.kd import KnowledgeDistillation
from limbeck.methods.minilm import MiniLM
from limbeck.methods.noise import NoisyLabels
from limbeck.methods.patient import Patient
from limbeck.methods.self_distillation import SelfDistillation
from limbeck.methods.theseus import Theseus

if TYPE_CHECKING:
    from limbeck.config import DistillConfig
    from limbeck.methods.base import Method
    from limbeck.model_folder import ModelFacts
    from limbeck.student_spec import Student
    from limbeck.tasks.base import Task


def needs_of(method: Method) -> frozenset[str]:
    """What the student has to offer, of ``limbeck.shapes.OFFERS``: ``Method.needs``, and what its options add.

    All but the layers of a student of ``theseus`` stays as it begins: random embeddings and a random head would too.
    """
    if not isinstance(method, Theseus):
        return method.needs
    return method.needs | {"inherited"} | ({"like_layers"} if method.replacing == "additive" else set())


def ignores_answers(method: Method) -> bool:
    """Whether its options give the teacher's answers no weight."""
    if isinstance(method, DistilBERT):
        return method.soft_weight == 0
    weighed = KnowledgeDistillation | NoisyLabels | SelfDistillation | MiniLM | Patient
    return isinstance(method, weighed) and method.alpha == 0


def learns_labels_alone(method: Method) -> bool:
    """Whether the true labels are all that it learns from, or that one of its parts does: of texts without labels
    there is nothing to learn then."""
    if method.labels_alone or any(part.labels_alone for part in method.parts()):
        return True
    states = isinstance(method, DistilBERT) or (isinstance(method, Patient) and method.beta > 0)
    return ignores_answers(method) and not states


def alone(config: DistillConfig, task: Task) -> Iterator[Problem]:
    """What can be seen without teacher and data."""
    loss, method = config.training.loss, config.method
    if loss.type != "kl" and method.labels_alone:
        yield Problem(
            "/training/loss",
            f"found {loss.type!r}; the method {method.type!r} learns from labels alone and has no teacher's answers to "
            "compare with",
        )
    elif loss.type != "kl" and ignores_answers(method):
        weight = "soft_weight" if isinstance(method, DistilBERT) else "alpha"
        yield Problem(
            "/training/loss",
            f"found {loss.type!r}, which compares answers; with {weight} 0 the method {method.type!r} gives the "
            "teacher's no weight",
        )
    elif loss.needs_labels and method.no_labels is not None:
        yield Problem(
            "/training/loss",
            f"found {loss.type!r}, which reads the true labels; with {method.type!r} {method.no_labels} learn from "
            "answers alone; allowed: kl, reverse_kl, jsd, dist, logit_standardisation",
        )
    if isinstance(method, NoisyLabels) and method.kind == "random" and task.of_places:
        yield Problem(
            "/method/kind",
            f"found 'random', which puts classes in another order; those of {task.type} are the places of a text, "
            "which would keep half of what the teacher knows of them; allowed: permuted",
        )


def taken(method: Method, task: Task | None) -> Iterator[str]:
    """A sentence about the method that trains in this one's place, where one does."""
    other = method if task is None else method.for_task(task)
    if task is not None and other.type != method.type:
        yield f"The student of {method.type!r} is trained by {other.type!r}, as the task is {task.type}."


def unread(config: DistillConfig, task: Task | None, *, written: bool = False) -> Iterator[str]:
    """Sentences about what the user chose of the method and this job never looks at.

    Args:
        task: None where it is not known yet.
        written: whether ``config`` is what the user wrote, so that a default that stands there was chosen as well; one
            that was stored has every default filled in.
    """
    method = config.method
    options = dict(method)
    for name, why in _reasons(config, task):
        if name not in options or why is None:
            continue
        chosen = (
            name in method.model_fields_set if written else options[name] != type(method).model_fields[name].default
        )
        if chosen:
            shown = f"{options[name]:g}" if isinstance(options[name], float) else repr(options[name])
            yield f"method.{name} ({shown}) is not used: {why}."


def _reasons(config: DistillConfig, task: Task | None) -> Iterator[tuple[str, str | None]]:
    """Options of methods, and why this job reads them not; None where it does."""
    method = config.method
    yield "temperature", _why_not_softened(config, task)
    if task is not None and task.kind == "vector" and not task.labelled:
        yield "alpha", "texts without scores have no labels that answers could be weighed against"
    if task is not None and not task.of_words:
        yield "answers", "it is an option for 'masked_lm' alone"
    if isinstance(method, FastBert) and method.floor is not None:
        yield "max_loss", "floor says what the speed has to keep"


def _why_not_softened(config: DistillConfig, task: Task | None) -> str | None:
    """Why no answer is divided by the method's temperature; None where answers are."""
    method, loss = config.method, config.training.loss.type
    if ignores_answers(method) or (isinstance(method, FastBert) and method.alpha == 0):
        return "the teacher's answers have no weight"
    if task is not None and task.kind in ("value", "vector"):
        answers = {"value": "numbers", "vector": "vectors"}[task.kind]
        return f"it softens probabilities, and the answers of {task.type!r} are {answers}"
    if loss == "annealing":
        return "training.loss 'annealing' compares the logits themselves"
    if loss == "logit_standardisation":
        return "training.loss 'logit_standardisation' has a temperature of its own"
    return None


def against_models(config: DistillConfig, teacher: ModelFacts, source: ModelFacts | None) -> Iterator[Problem]:
    """What the method asks of a student that fits its origin, and this one has not.

    Args:
        source: the facts of ``student.source``; None where that is not named or not known yet.
    """
    method, student = config.method, config.student
    missing = needs_of(method) - shapes.offers(student, teacher, source)
    for name in ["layers"] if "layers" in missing else sorted(missing):  # what has none has none of the right kind
        if name == "like_layers" and not student.recurrent:
            yield Problem(
                "/method/replacing", f"found 'additive', which needs {shapes.OFFERS[name]}; allowed: linear, constant"
            )
            continue
        yield Problem(
            "/method",
            f"found {method.type!r}, which needs of the student {shapes.OFFERS[name]}; the one that "
            "/teacher and /student ask for has not: take 'kd', or another student",
        )
    if isinstance(method, MiniLM) and method.relation_heads is not None:
        yield from _relation_heads(method.relation_heads, student, teacher, source)


def _relation_heads(wanted: int, student: Student, teacher: ModelFacts, source: ModelFacts | None) -> Iterator[Problem]:
    """Whether they divide the widths of both models' queries."""
    if student.recurrent or teacher.stages or (student.source is not None and source is None):
        return
    if source is not None:
        width = source.hidden_size
    else:
        shape = shapes.resolve(student, teacher)
        width = shape.hidden_size // shape.heads * (shape.kept_heads or shape.heads)
    widths = dict.fromkeys((width, teacher.hidden_size))
    if any(one % wanted for one in widths):
        detail = f"found {wanted}; it has to divide the widths {' and '.join(map(str, widths))}"
        yield Problem("/method/relation_heads", detail)
