"""Examples for the OpenAPI page. A test holds each against its schema, so that none goes stale."""

from __future__ import annotations

from typing import Any

from limbeck.config import DistillConfig

_JOB_ID = "job_019aa1f2-0b1c-7c3e-9d53-2f6c1f0a4b11"
_STUDENT_ID = "mdl_019aa1f9-6f0e-7a44-8c6b-0d8a54c2e7f3"
_BASELINE_ID = "mdl_019aa1f9-6f10-7b02-a3a6-7b1f5e9c0d42"
_TEACHER_ID = "mdl_019aa1e0-1111-7d3b-b0a5-92d5c1a7e001"
_DATASET_ID = "ds_019aa1ee-52aa-7e6d-8f11-0c9d8b7a6e55"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

SMALLEST = {"teacher": "builtin:minilm-l6", "dataset": "builtin:stdlib-docstrings", "method": "kd"}
FULL = {
    "name": "reviews, 3 layers",
    "teacher": {"source": f"model:{_TEACHER_ID}", "finetune": {"epochs": 3, "learning_rate": 1e-4}},
    "dataset": {"source": f"dataset:{_DATASET_ID}", "limit": 20000},
    "student": {"layers": 3},
    "method": {"type": "kd", "temperature": 4.0},
    "training": {"epochs": 3, "batch_size": 32, "learning_rate": 1e-4, "max_length": 128, "seed": 42},
    "evaluation": {"baseline": True},
    "export": ["onnx", "onnx-int8"],
    "gate": {"min_retention": 0.95},
    "metadata": {"team": "search"},
    "priority": 5,
}
HUB = {
    "teacher": "textattack/bert-base-uncased-SST-2",
    "dataset": {"source": "stanfordnlp/sst2", "columns": {"text": "sentence"}},
    "method": "kd",
}
IMAGES = {
    "teacher": "builtin:vit-digits",
    "dataset": "builtin:digits",
    "student": 2,
    "method": "kd",
    "training": {"epochs": 20, "learning_rate": 1e-3},
}
SEVERAL = {
    "teacher": {
        "source": "textattack/bert-base-uncased-SST-2",
        "more": ["textattack/roberta-base-SST-2", f"model:{_TEACHER_ID}"],
        "combine": "confidence",
    },
    "dataset": {"source": "stanfordnlp/sst2", "columns": {"text": "sentence"}},
    "method": "kd",
}
ALIAS = {
    "name": "reviews",
    "object": "alias",
    "model": _STUDENT_ID,
    "version": 3,
    "updated_at": "2026-11-24T02:20:00.000000Z",
}

#: For ``Body(openapi_examples=…)``.
JOB_REQUESTS: dict[str, Any] = {
    "smallest": {"summary": "The smallest request: needs no upload and no internet", "value": SMALLEST},
    "full": {"summary": "Your own teacher and data, everything said", "value": FULL},
    "hub": {"summary": "Names from the Hugging Face hub", "value": HUB},
    "several": {"summary": "Several teachers, each counted by how sure it is", "value": SEVERAL},
    "images": {
        "summary": "Images, from a teacher that the job trains from scratch: needs no upload and no internet",
        "value": IMAGES,
    },
}

JOB: dict[str, Any] = {
    "id": _JOB_ID,
    "object": "job",
    "name": "kd: minilm-l6 on stdlib-docstrings",
    "owner": "default",
    "priority": 0,
    "status": "running",
    "stage": "distilling",
    "created_at": "2026-11-24T02:13:26.031000Z",
    "started_at": "2026-11-24T02:13:26.540000Z",
    "finished_at": None,
    "queue_position": None,
    "starts_in_seconds": None,
    "waits_for": None,
    "resources": {"gpus": 0},
    "attempt": 1,
    "progress": {
        "stage": "distilling",
        "step": 412,
        "total_steps": 940,
        "percent": 46.5,
        "examples_per_second": 211.4,
        "eta_seconds": 88.0,
    },
    "config": DistillConfig.parse(SMALLEST).model_dump(mode="json"),
    "metadata": {},
    "provenance": {"seed": 42},
    "error": None,
    "result": None,
}
QUEUED: dict[str, Any] = JOB | {
    "status": "queued",
    "stage": None,
    "started_at": None,
    "attempt": 0,
    "queue_position": 3,
    "starts_in_seconds": {"least": 180.0, "most": 540.0},
    "progress": None,
    "provenance": {},
}
ENDED: dict[str, Any] = JOB | {
    "status": "succeeded",
    "stage": None,
    "finished_at": "2026-11-24T02:16:48.902000Z",
    "result": {"model_id": _STUDENT_ID, "baseline_id": _BASELINE_ID, "verdict": {"passed": True, "reasons": []}},
}
CANCELLING: dict[str, Any] = JOB | {"status": "cancelling"}


def listing(*items: Any) -> dict[str, Any]:
    return {"object": "list", "data": list(items), "has_more": False, "next_cursor": None}


VALIDATION = {
    "object": "validation",
    "valid": True,
    "config": JOB["config"],
    "teacher": {
        "architecture": "BertModel",
        "model_type": "bert",
        "layers": 6,
        "hidden_size": 384,
        "labels": None,
        "has_head": False,
        "parameters": 22713728,
        "bytes": 90868376,
        "max_positions": 512,
        "heads": 12,
        "intermediate_size": 1536,
        "embedding_size": None,
        "stages": [],
        "like_layers": True,
        "pooling": "mean",
    },
    "notes": [],
}
EVENT = {
    "sequence": 4,
    "kind": "teacher.evaluated",
    "message": "Fine-tuned teacher: 76.8 % on validation",
    "at": "2026-11-24T02:14:31.220000Z",
    "data": {"epoch": 3, "teacher": "teacher", "accuracy": 0.768},
}
EVENT_STREAM = (
    "id: 4\nevent: teacher.evaluated\n"
    'data: {"sequence":4,"kind":"teacher.evaluated","message":"…","at":"2026-11-24T02:14:31.220000Z","data":{}}\n\n'
    "event: progress\n"
    'data: {"status": "running", "stage": "distilling", "attempt": 1, "progress": {"percent": 46.5}}\n\n'
    ": still there\n\n"
)
ATTEMPT = {
    "number": 1,
    "fence": 1,
    "worker": "worker-1",
    "host": "gpu-03",
    "pid": 4711,
    "started_at": "2026-11-24T02:13:26.540000Z",
    "ended_at": None,
    "resumed_from_step": 0,
    "last_step": 412,
    "outcome": None,
    "reason": None,
    "message": None,
}
METRICS = {
    "object": "metrics",
    "series": {"distilling/loss": [{"step": 410, "value": 0.71, "at": "2026-11-24T02:14:55.100000Z"}]},
}

LOG = (
    "At step 412 of distilling the loss became nan. A lower learning rate than 0.01 may help.\n\n"
    "Traceback (most recent call last):\n…\n"
)


def _split_profile(rows: int) -> dict[str, Any]:
    half = rows // 2
    return {
        "rows": rows,
        "labels": {"negative": half, "positive": rows - half},
        "characters": {"least": 6, "median": 51, "p95": 104, "most": 268},
        "duplicates": 0,
    }


DATASET: dict[str, Any] = {
    "id": _DATASET_ID,
    "object": "dataset",
    "name": "reviews",
    "created_at": "2026-11-24T02:10:02.417000Z",
    "splits": {
        "train": {"rows": 8000, "bytes": 412300, "sha256": _SHA256},
        "validation": {"rows": 1000, "bytes": 52110, "sha256": _SHA256},
        "test": {"rows": 1000, "bytes": 51873, "sha256": _SHA256},
    },
    "profile": {
        "task": "sequence_classification",
        "columns": {"text": "review", "text_pair": None, "label": "stars"},
        "labels": ["negative", "positive"],
        "pair": False,
        "splits": {"train": _split_profile(8000), "validation": _split_profile(1000), "test": _split_profile(1000)},
        "notes": [
            "The validation split, 1,000 rows, is cut from train.",
            "The test split, 1,000 rows, is cut from train.",
        ],
        "warnings": [],
    },
    "bytes": 516283,
    "sha256": _SHA256,
}
PREVIEW = {
    "object": "preview",
    "split": "train",
    "rows": [{"text": "a gripping film", "label": "positive"}, {"text": "it never ends", "label": "negative"}],
}
FILE = {"path": "model.safetensors", "bytes": 49672184, "sha256": _SHA256}
MODEL_SUMMARY: dict[str, Any] = {
    "id": _STUDENT_ID,
    "object": "model",
    "kind": "student",
    "name": "kd: minilm-l6 on stdlib-docstrings",
    "created_at": "2026-11-24T02:16:48.902000Z",
    "job_id": _JOB_ID,
    "teacher": "builtin:minilm-l6",
    "dataset": "builtin:stdlib-docstrings",
    "method": "kd",
    "task": "sequence_classification",
    "labels": ["networking", "text", "testing"],
    "architecture": "BertForSequenceClassification",
    "layers": 3,
    "parameters": 17394828,
    "bytes": 121402311,
}
MODEL: dict[str, Any] = MODEL_SUMMARY | {"files": [FILE], "formats": ["safetensors", "onnx"], "scorecard": None}

TEACHER: dict[str, Any] = MODEL | {
    "id": _TEACHER_ID,
    "kind": "teacher",
    "name": "bert-base, our reviews",
    "job_id": None,
    "teacher": None,
    "dataset": None,
    "method": None,
    "task": None,
    "layers": 12,
    "formats": ["safetensors"],
}

#: For ``Body(openapi_examples=…)``.
#: Four grey pixels as a PNG.
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNgCGVY9R8AA60B/2f7ygkAAAAASUVORK5CYII="
PREDICT_REQUESTS: dict[str, Any] = {
    "one": {"summary": "One text", "value": {"inputs": "Open a socket and listen on it."}},
    "many": {
        "summary": "Several texts, the three best labels of each",
        "value": {"inputs": ["Parse a date.", "Run the tests."], "parameters": {"top_k": 3}},
    },
    "early": {
        "summary": "A student with early exits, at a speed of your own",
        "value": {"inputs": "Open a socket and listen on it.", "parameters": {"speed": 0.3}},
    },
    "question": {
        "summary": "A question about a text",
        "value": {"inputs": {"question": "What is parsed?", "context": "Parse a date in ISO format."}},
    },
    "tokens": {
        "summary": "A list of tokens, for a student that tags these",
        "value": {"inputs": {"tokens": ["John", "lives", "in", "Berlin", "."]}},
    },
    "mask": {
        "summary": "A masked token, the three likeliest",
        "value": {"inputs": "Open a [MASK] and listen on it.", "parameters": {"top_k": 3}},
    },
    "image": {"summary": "An image in base64", "value": {"inputs": IMAGE}},
    "compared": {
        "summary": "A sentence and those that it is compared with, for a student that gives vectors",
        "value": {"inputs": {"source_sentence": "It rains.", "sentences": ["It pours.", "The sun shines."]}},
    },
    "pair": {"summary": "A pair of texts", "value": {"inputs": {"text": "It rains.", "text_pair": "The sun shines."}}},
}
PREDICTION = [{"label": "networking", "score": 0.9731}]

ALIAS_REQUESTS: dict[str, Any] = {"switch": {"summary": "Let it mean this student", "value": {"model": _STUDENT_ID}}}
SERVER = {"name": "limbeck", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
TENSORS = {
    "name": "reviews",
    "versions": ["1"],
    "platform": "onnx",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "score", "datatype": "FP32", "shape": [-1]},
    ],
}
HF_PREDICTION = [[{"label": "networking", "score": 0.9731}, {"label": "text", "score": 0.0269}]]
INFER = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Open a socket and listen on it."]}]}
INFERRED = {
    "model_name": "reviews",
    "model_version": "1",
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["networking"]},
        {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.9731]},
    ],
}

HEALTHY = {"status": "ok", "checks": {}}
READY = {
    "status": "ok",
    "checks": {
        "database": {"ok": True, "detail": "answers"},
        "storage": {"ok": True, "detail": "answers"},
        "broker": {"ok": True, "detail": "no bell was refused"},
    },
}
FORM = {
    "type": "kd",
    "title": "KnowledgeDistillation",
    "description": "Soft targets.",
    "json_schema": {"type": "object", "properties": {"temperature": {"type": "number", "default": 4.0}}},
}
TASK = {
    "type": "sequence_classification",
    "title": "SequenceClassification",
    "description": "One label for a text or a pair of texts.",
    "json_schema": {"type": "object", "properties": {}},
}

_PROBLEM_TEXTS = {
    404: ("not_found", "Not found", f"There is no job {_JOB_ID}."),
    409: (
        "conflict",
        "The state does not allow it",
        f"{_JOB_ID} is running; delete is possible while it is: cancelled, succeeded, failed.",
    ),
    412: ("stale", "It has changed", "The alias 'reviews' has version 3, not 2: somebody switched it meanwhile."),
    413: (
        "too_large",
        "Too large",
        "The upload is larger than this server takes: at most 2147483648 bytes (LIMBECK_MAX_UPLOAD_BYTES).",
    ),
    416: ("range_not_satisfiable", "Range Not Satisfiable", "The range begins behind the end: there are 1024 bytes."),
    422: (
        "invalid_config",
        "The input is not valid",
        "The configuration is not valid: /training/epochs: Input should be greater than or equal to 1; found 0",
    ),
    429: (
        "queue_full",
        "The queue is full",
        "10000 jobs wait already, which is as many as may; nothing was changed.",
    ),
    503: ("unavailable", "A service is away", "The database does not answer."),
    507: ("storage_full", "The storage is full", "The server's disk is full; nothing was stored."),
}


def problem(status: int) -> dict[str, Any]:
    """A problem with this status."""
    code, title, detail = _PROBLEM_TEXTS[status]
    detail_of_field = {"pointer": "/training/epochs", "detail": "Input should be greater than or equal to 1; found 0"}
    found = [detail_of_field] if status == 422 else []
    return {
        "type": f"urn:limbeck:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"/v1/jobs/{_JOB_ID}",
        "code": code,
        "request_id": "req_5f0c8a6de1b94f3b8f1d0c7a9e2b4d66",
        "errors": found,
    }
