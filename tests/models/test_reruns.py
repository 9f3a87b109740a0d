"""What a job is run again with, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from limbeck.config import DistillConfig
from limbeck.errors import Conflict, IdempotencyKeyReused, InvalidConfig
from models.db import Database
from models.job import Job, JobStatus
from models.repository import jobs
from tests.models.conftest import Submit, config, set_status

S = JobStatus


def test_a_rerun_is_pinned_to_what_the_first_run_resolved(database: Database, submit: Submit) -> None:
    """A hub name without a revision means another model tomorrow; the repeat would not repeat."""
    old = submit(config=config(teacher="org/bert", dataset="org/data"), labels={"a": "b"}, idempotency_key="k")
    with pytest.raises(Conflict, match="is queued; rerun"), database.session() as session:
        jobs.rerun(session, old.id)
    found = {"teacher": {"revision": "abc", "sha256": "1"}, "dataset": {"revision": None, "sha256": "2"}, "seed": 7}
    found["micro_batches"] = {"distilling/main": 8}
    set_status(database, old.id, S.FAILED, provenance=found, attempt=3)
    with database.session() as session:
        new, _ = jobs.rerun(session, old.id)
    assert new.id != old.id
    assert (new.status, new.attempt, new.fence, new.idempotency_key) == (S.QUEUED, 0, 0, None)
    assert new.config["teacher"] == {"source": "org/bert", "revision": "abc"}
    assert new.config["dataset"] == old.config["dataset"]
    assert new.config["training"] == {"seed": 7}
    assert new.labels == {"a": "b"}
    kept = ("teacher", "dataset", "micro_batches")
    rerun_of = {"job": old.id} | {part: found[part] for part in kept}
    assert new.provenance == {"rerun_of": rerun_of}


def test_a_rerun_under_a_key_is_made_once(database: Database, submit: Submit) -> None:
    """A client whose answer was lost asks again; each time would train once more, and nobody looks at the first."""
    first, second = submit(idempotency_key="k"), submit()
    for job in (first, second):
        set_status(database, job.id, S.FAILED)

    def rerun(job: Job, key: str) -> Job:
        with database.session() as session:
            return jobs.rerun(session, job.id, idempotency_key=key)[0]

    with ThreadPoolExecutor(8) as pool:
        (made,) = set(pool.map(lambda _: rerun(first, "again").id, range(8)))
    for job, key in ((second, "again"), (first, "k")):
        with pytest.raises(IdempotencyKeyReused):
            rerun(job, key)
    set_status(database, made, S.FAILED)
    assert rerun(first, "again").id == made


def test_a_rerun_pins_every_one_of_several_teachers(database: Database, submit: Submit) -> None:
    """Guards the second teacher of a repeat: its name alone may mean another model by then."""
    more = [{"source": "org/b", "revision": "main"}, {"source": "org/c", "revision": None}]
    document = config(teacher="org/a", dataset="org/data")
    old = submit(config={**document, "teacher": {**document["teacher"], "more": more}})
    named = [{"revision": "b1", "sha256": "2"}, {"revision": None, "sha256": "3"}]
    set_status(
        database, old.id, S.FAILED, provenance={"teacher": {"revision": "a1"}, "more_teachers": named}, attempt=1
    )
    with database.session() as session:
        new, _ = jobs.rerun(session, old.id)
    assert new.config["teacher"]["revision"] == "a1"
    assert [one["revision"] for one in new.config["teacher"]["more"]] == ["b1", None]
    assert new.provenance["rerun_of"]["more_teachers"] == named


def test_a_rerun_of_what_is_built_in_has_a_config_that_is_taken(database: Database, submit: Submit) -> None:
    """Guards every repeat from a built-in teacher: its package's version is no revision that can be asked for."""
    teacher = {"source": "builtin:minilm-l6", "more": [{"source": "builtin:minilm-l6", "finetune": True}]}
    document = {"teacher": teacher, "dataset": {"source": "builtin:stdlib-docstrings"}, "student": {"layers": 2}}
    old = submit(config=document)
    named = {"revision": "1.0", "sha256": "1"}
    found = {"teacher": named, "dataset": named, "more_teachers": [named]}
    set_status(database, old.id, S.FAILED, provenance=found, attempt=1)
    with database.session() as session:
        new, _ = jobs.rerun(session, old.id)
    assert new.config == document
    DistillConfig.parse(new.config)


def test_a_job_that_was_accepted_before_is_repeated_and_read(database: Database, submit: Submit) -> None:
    """Guards jobs of an earlier version, whose repeats wrote a built-in's version as its revision."""
    named = {"source": "builtin:minilm-l6", "revision": "1.0"}
    document = {"teacher": named, "dataset": {"source": "builtin:digits", "revision": "scikit-learn 1.6"}}
    document |= {"student": {"layers": [0, 2], "init": "first"}}
    with pytest.raises(InvalidConfig):
        DistillConfig.parse(document)
    DistillConfig.parse(document, stored=True)
    old = submit(config=document)
    set_status(database, old.id, S.FAILED, attempt=1)
    with database.session() as session:
        new, _ = jobs.rerun(session, old.id)
    assert [new.config[part]["revision"] for part in ("teacher", "dataset")] == [None, None]
    DistillConfig.parse(new.config, stored=True)


def test_a_rerun_pins_texts_without_labels(database: Database, submit: Submit) -> None:
    """Guards a repeat after a push to their repository: it would learn from other texts, and say nothing."""
    document = config(teacher="org/a", dataset="org/data")
    kinds = [{"type": "sentence_shuffle"}, *({"type": "unlabelled", "source": one} for one in ("org/b", "path:/c"))]
    old = submit(config={**document, "training": {**document["training"], "augmentation": kinds}})
    named = {
        "training/augmentation/1": {"source": "org/b", "revision": "b1", "sha256": "2"},
        "training/augmentation/2": {"source": "path:/c", "revision": None, "sha256": "3"},
    }
    set_status(database, old.id, S.FAILED, provenance={"unlabelled": named}, attempt=1)
    with database.session() as session:
        new, _ = jobs.rerun(session, old.id)
    assert new.config["training"]["augmentation"] == [kinds[0], {**kinds[1], "revision": "b1"}, kinds[2]]
    assert new.config["training"]["seed"] == old.config["training"]["seed"]
    assert new.provenance["rerun_of"]["unlabelled"] == named
