"""The scorecard of the OpenAPI page, as ``api/examples.py`` has the rest."""

from __future__ import annotations

from typing import Any

from limbeck.scorecard import Scorecard


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": round(value - 0.02, 4), "high": round(value + 0.02, 4)}


def _latency(milliseconds: float) -> list[dict[str, float]]:
    return [
        {
            "batch_size": size,
            "p50_ms": milliseconds * size,
            "p95_ms": milliseconds * size * 1.5,
            "examples_per_second": 1000 / milliseconds,
        }
        for size in (1, 32)
    ]


def _model_card(name: str, layers: int, accuracy: float) -> dict[str, Any]:
    return {
        "name": name,
        "layers": layers,
        "hidden_size": 384,
        "parameters": 12_000_000 + 1_775_000 * layers,
        "bytes": 48_000_000 + 7_100_000 * layers,
        "metrics": {"accuracy": _estimate(accuracy), "macro_f1": _estimate(accuracy - 0.03)},
        "validation": {"accuracy": accuracy, "macro_f1": accuracy - 0.03},
        "latency": _latency(1.5 * layers),
    }


_WRITTEN: dict[str, Any] = {
    "version": 1,
    "task": "sequence_classification",
    "method": "kd",
    "main_metric": "accuracy",
    "seed": 42,
    "dataset": {
        "source": "builtin:stdlib-docstrings",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "train": 4600,
        "validation": 600,
        "test": 600,
        "labels": ["networking", "text", "testing"],
        "majority": 0.18,
    },
    "hardware": {
        "cpu": "x86_64",
        "threads": 2,
        "device": "cpu",
        "precision": "float32",
        "torch": "2.9.0",
        "transformers": "5.0.0",
        "onnxruntime": "1.23.0",
    },
    "teacher": _model_card("builtin:minilm-l6", 6, 0.768),
    "student": _model_card("student", 3, 0.731),
    "baseline": _model_card("baseline", 3, 0.702),
    "retention": _estimate(0.952),
    "retention_note": None,
    "gap_recovery": _estimate(0.44),
    "gap_recovery_note": None,
    "speedup": {"1": 1.9, "32": 2.0},
    "compression": 1.3,
    "exports": [
        {
            "format": "onnx",
            "bytes": 69_300_000,
            "examples": 256,
            "max_logit_difference": 0.000004,
            "label_agreement": 1.0,
            "metrics": {"accuracy": _estimate(0.731)},
            "latency": _latency(2.1),
        }
    ],
    "minutes": {"preparing": 0.1, "teacher": 1.4, "distilling": 1.1, "evaluating": 0.2, "exporting": 0.5},
    "verdict": {"passed": True, "reasons": []},
}

#: With the fields that are empty here, as every answer has them.
SCORECARD: dict[str, Any] = Scorecard.model_validate(_WRITTEN).model_dump(mode="json")
