"""What makes a run repeatable: the revisions, hashes and versions that it had, and whether a repeat has the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from limbeck.errors import InvalidDataset, InvalidModel, Problem
from limbeck.machine import installed

if TYPE_CHECKING:
    from limbeck.run import Run
    from limbeck.scorecard import DatasetCard
    from limbeck.teachers import TeacherFolder


def require_same(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse to repeat a run on other data or from another teacher: their names stay when what they name changes.

    Args:
        expected: sha256 by the part of the configuration: ``dataset``, ``teacher``, ``teacher/more/0`` …, and
            ``training/augmentation/0`` … of texts without labels.
        found: likewise.
    """
    for part, wanted in expected.items():
        is_data = part.startswith(("dataset", "training"))
        refusal, what = (InvalidDataset, "data set") if is_data else (InvalidModel, "teacher")
        if wanted != found[part]:
            detail = (
                f"the {what} is no longer the one that the first run had: found the sha256 {found[part]}, and it has "
                f"to be {wanted}; submit a new job to train on what is there now"
            )
            raise refusal(f"/{part}/source: {detail}", [Problem(f"/{part}/source", detail)])


def say_provenance(
    run: Run,
    card: DatasetCard,
    dataset_revision: str | None,
    teachers: Sequence[TeacherFolder],
    digests: Sequence[str],
    unlabelled: Mapping[str, Mapping[str, str | None]],
) -> None:
    """Record what is known once everything is read.

    Args:
        digests: the sha256 of each teacher.
        unlabelled: source, revision and sha256 of texts without labels, by their part of the configuration.
    """
    packages = ("limbeck", "numpy", "onnxruntime", "tokenizers", "transformers")
    hardware = run.device.hardware()
    if run.config.student.source is not None:
        run.provenance(student={"source": run.config.student.source, "revision": run.facts["student_revision"]})
    known = [
        {"source": one.spec.source, "revision": one.model.revision, "sha256": sha256}
        for one, sha256 in zip(teachers, digests, strict=True)
    ]
    if len(known) > 1:
        run.provenance(more_teachers=known[1:])
    if unlabelled:
        run.provenance(unlabelled={part: dict(one) for part, one in unlabelled.items()})
    run.provenance(
        dataset={"source": card.source, "revision": dataset_revision, "sha256": card.sha256},
        teacher=known[0],
        seed=run.config.training.seed,
        hardware=hardware.model_dump(mode="json"),
        python=platform.python_version(),
        packages={name: installed(name) for name in packages} | {"torch": hardware.torch},
    )
