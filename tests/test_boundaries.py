"""Who imports what, seen on ``sys.modules`` of a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "onnxscript")
SERVER = ("fastapi", "starlette", "sqlalchemy", "alembic", "celery", "kombu", "redis", "psycopg")

LIGHT = (
    "limbeck",
    "limbeck.callbacks",
    "limbeck.cli",
    "limbeck.client",
    "limbeck.config",
    "limbeck.data",
    "limbeck.demo",
    "limbeck.errors",
    "limbeck.evaluate",
    "limbeck.model_folder",
    "limbeck.preflight",
    "limbeck.recipes",
    "limbeck.runtime",
    "limbeck.scorecard",
    "limbeck.sources",
)


def loaded_after(*modules: str) -> set[str]:
    """The top-level names that a fresh interpreter has after importing ``modules``."""
    script = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_what_a_client_imports_is_light_and_knows_no_server() -> None:
    """Guards against a command line that takes seconds to start, and a notebook that needs a database."""
    assert loaded_after(*LIGHT) & {*HEAVY, *SERVER} == set()


def test_the_sdk_needs_no_more_than_the_wheels_own_dependencies() -> None:
    """Guards against `pip install limbeck` without extras giving a command that does not start."""
    extras = {"pyarrow", "sklearn", "datasets", "onnx", "onnxruntime", "safetensors", "pandas", "scipy"}
    assert loaded_after("limbeck.cli", "limbeck.client", "limbeck.config") & {*HEAVY, *SERVER, *extras} == set()


@pytest.mark.parametrize("module", ["api.app", "api.__main__", "worker.queue", "models.db", "models.repository"])
def test_the_api_process_has_no_torch(module: str) -> None:
    """Guards against an API that takes a gigabyte and seconds to start."""
    assert loaded_after(module) & set(HEAVY) == set()


def test_serving_on_its_own_knows_no_queue() -> None:
    """Guards against a replica that needs a broker, and takes its memory, to answer a question."""
    assert loaded_after("api.serve.__main__") & {*HEAVY, "celery", "kombu", "redis", "worker"} == set()


def test_the_worker_itself_has_no_torch() -> None:
    """Guards against memory that stays with the worker after its jobs, and CUDA started before the fork."""
    assert loaded_after("worker.tasks", "worker.runner", "worker.reconciler") & set(HEAVY) == set()


@pytest.mark.parametrize("module", ["worker.trainer", "limbeck.engine", "limbeck.losses", "limbeck.export"])
def test_training_knows_no_server(module: str) -> None:
    """Guards against a library that a notebook cannot use without a web server."""
    assert loaded_after(module) & set(SERVER) == set()


def test_the_house_has_its_floors() -> None:
    """import-linter's contracts, which also see imports inside of functions."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
