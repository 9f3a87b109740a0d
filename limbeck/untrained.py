"""``builtin:vit-digits``: a small ViT that has learned nothing yet, as a folder, for images of 8 × 8 pixels.

No pretrained image model comes as a package. So this one is honest about it: its weights are drawn at random, always
the same, and the job that names it as its teacher trains it from scratch (``teacher.finetune``) before it distils.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = "builtin:vit-digits"
#: Changes with the weights; it is what provenance calls the revision.
REVISION = "1"
_SEED = 8
#: As transformers starts a ViT: a normal distribution, cut at two deviations.
_SPREAD = 0.02
_LAYERS, _HIDDEN, _INNER, _PATCH, _SIDE = 6, 64, 128, 2, 8

CONFIG: dict[str, Any] = {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": _INNER,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "num_channels": 3,  # grey in three colours: so that transformers' own pipelines, which give colours, can ask it
    "qkv_bias": True,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": _SPREAD,
}
_PREPARATION = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": _SIDE, "width": _SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@functools.cache
def untrained_vit() -> Path:
    """The model's folder, written once for each process and gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="limbeck-vit-digits-"))
    atexit.register(_remove, folder, os.getpid())
    write(folder)
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


def write(folder: Path) -> None:
    """Write configuration, weights and preparation; no torch is needed."""
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPARATION, indent=2) + "\n", encoding="utf-8")
    save_file(_weights(), folder / "model.safetensors", {"format": "pt"})


def _weights() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    draw = np.random.default_rng(_SEED)

    def drawn(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        values = draw.standard_normal(3 * math.prod(shape))
        return (values[np.abs(values) < 2][: math.prod(shape)].reshape(shape) * _SPREAD).astype(np.float32)

    def constant(value: float, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.full(size, value, dtype=np.float32)

    weights = {
        "embeddings.cls_token": drawn(1, 1, _HIDDEN),
        "embeddings.position_embeddings": drawn(1, (_SIDE // _PATCH) ** 2 + 1, _HIDDEN),
        "embeddings.patch_embeddings.projection.weight": drawn(_HIDDEN, 3, _PATCH, _PATCH),
        "embeddings.patch_embeddings.projection.bias": constant(0, _HIDDEN),
        "layernorm.weight": constant(1, _HIDDEN),
        "layernorm.bias": constant(0, _HIDDEN),
    }
    for layer in range(_LAYERS):
        at = f"encoder.layer.{layer}"
        square = {f"attention.attention.{name}": (_HIDDEN, _HIDDEN) for name in ("query", "key", "value")}
        shapes = square | {"attention.output.dense": (_HIDDEN, _HIDDEN)}
        shapes |= {"intermediate.dense": (_INNER, _HIDDEN), "output.dense": (_HIDDEN, _INNER)}
        for name, shape in shapes.items():
            weights |= {f"{at}.{name}.weight": drawn(*shape), f"{at}.{name}.bias": constant(0, shape[0])}
        for name in ("layernorm_before", "layernorm_after"):
            weights |= {f"{at}.{name}.weight": constant(1, _HIDDEN), f"{at}.{name}.bias": constant(0, _HIDDEN)}
    return weights
