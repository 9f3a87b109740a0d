"""What the task ``image_classification`` asks of a configuration: options that are about texts make no sense for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from limbeck.errors import Problem
from limbeck.families import FAMILIES

if TYPE_CHECKING:
    from limbeck.config import DistillConfig
    from limbeck.model_folder import ModelFacts

#: Fields of ``student`` that only texts have a meaning for, and why.
_OF_TEXTS = {
    "vocabulary": "an image has no tokens that could be left out",
    "architecture": "a recurrent network reads a sequence of words",
    "preset": "the public sizes are of BERT",
    "embedding_size": "there is no word table",
    "prune": "the importance of neurons is measured on texts",
}
_WIDTHS = ("hidden_size", "intermediate_size", "heads")
#: The smallest batch of which batch normalisation has a spread worth the name, whatever is left over at the end.
_SMALLEST_BATCH = 4


#: The exported forms that are made of such students.
_FORMS = ("onnx", "onnx-int8")


def alone(config: DistillConfig) -> Iterator[Problem]:
    """What can be seen without teacher and data."""
    student = config.student
    for form in config.export:
        if form not in _FORMS:
            yield Problem(
                "/export", f"found {form!r}, which is made of students that read texts; allowed: {', '.join(_FORMS)}"
            )
    for field, why in _OF_TEXTS.items():
        value = getattr(student, field)
        if value != type(student).model_fields[field].default:
            shown = value if isinstance(value, str | int) else value.model_dump(mode="json")
            yield Problem(f"/student/{field}", f"found {shown!r}; {why}: leave it out for image_classification")
    if student.source is None and student.start == "svd":
        for field in _WIDTHS:
            if getattr(student, field) is not None:
                yield Problem(
                    f"/student/{field}",
                    f"found {getattr(student, field)}; a teacher of images is not projected onto a narrower student: "
                    "leave it out, set student.start = 'random', or name a student.source",
                )


def against_models(
    config: DistillConfig,
    teacher: ModelFacts | None,
    student: ModelFacts | None,
    more: Sequence[ModelFacts | None] = (),
) -> Iterator[Problem]:
    """What does not fit the teacher, the student that is a model of its own, or one of several teachers."""
    models = {"teacher": teacher, "student": student or teacher}
    families = {part: FAMILIES.get(facts.model_type) for part, facts in models.items() if facts is not None}
    needs = config.method.needs - {"own_layers", "teacher_layers"}
    if needs and any(family is not None and family.stages for family in families.values()):
        yield Problem(
            "/method",
            f"found {config.method.type!r}, which compares hidden states; a ResNet has none of a transformer's: take "
            "kd, self, noise or none",
        )
    if student is None and teacher is not None and teacher.stages:
        yield from _of_stages(config)
    trained = [*families.values(), *(FAMILIES.get(facts.model_type) for facts in more if facts is not None)]
    if any(family is not None and family.normalises_batches for family in trained):
        yield from _whole_batches(config)


def _of_stages(config: DistillConfig) -> Iterator[Problem]:
    for field in _WIDTHS:
        if getattr(config.student, field) is not None:
            yield Problem(
                f"/student/{field}",
                f"found {getattr(config.student, field)}; a ResNet has the width of its stages: leave it out, or name "
                "a narrower model as student.source",
            )
    if "onnx-int8" in config.export:
        yield Problem(
            "/export",
            "found 'onnx-int8'; a ResNet is made of convolutions, which dynamic quantisation leaves as they are, so "
            "that nothing would be saved: take 'onnx'",
        )


def _whole_batches(config: DistillConfig) -> Iterator[Problem]:
    why = "a ResNet normalises over all examples of a batch"
    if config.training.gradient_accumulation != 1:
        yield Problem(
            "/training/gradient_accumulation",
            f"found {config.training.gradient_accumulation!r}; {why}, so that parts of one would be another thing: 1",
        )
    if config.training.token_budget is not None:
        yield Problem(
            "/training/token_budget",
            f"found {config.training.token_budget}; {why}, so that parts of one would be another thing: leave it out",
        )
    if config.training.devices > 1:
        yield Problem("/training/devices", f"found {config.training.devices}; {why}, which devices see parts of: 1")
    if config.training.batch_size < _SMALLEST_BATCH:
        yield Problem("/training/batch_size", f"found {config.training.batch_size}; {why}: at least {_SMALLEST_BATCH}")
