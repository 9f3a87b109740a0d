"""Tiny teachers of images, with random weights, and scikit-learn's digits as real images for them to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.data.digits import load_digits

LABELS = tuple("0123456789")
_SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
_OWN: dict[str, dict[str, Any]] = {
    "vit": {**_SIZE, "image_size": 8, "patch_size": 2},
    "deit": {**_SIZE, "image_size": 8, "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3], "layer_type": "basic"},
}
FAMILIES = tuple(_OWN)
SIDES = {"vit": 8, "deit": 8, "resnet": 16}


def write_image_model(family: str, folder: Path, *, head: bool = False, seed: int = 0, **changes: Any) -> Path:
    """Write a Hugging Face folder (configuration, safetensors, preparation); gains and biases are random as well."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    config = AutoConfig.for_model(family, **{"num_channels": 3, "initializer_range": 0.2, **_OWN[family], **changes})
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: place for place, label in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForImageClassification if head else AutoModel).from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    model.save_pretrained(folder)
    side = changes.get("image_size", SIDES[family])
    preparation = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * config.num_channels,
        "image_std": [0.5] * config.num_channels,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def write_digits(folder: Path, rows: int = 120) -> Path:
    """Write ``{train,validation,test}.parquet`` in the hub's layout of CIFAR-10: ``img`` with bytes and path, ``label``
    as a ClassLabel. Validation and test have a quarter of train's rows each."""
    import datasets
    import pyarrow.parquet

    corpus = load_digits()
    feature = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))})
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, size in (("train", rows), ("validation", rows // 4), ("test", rows // 4)):
        span = range(start, start + size)
        start += size
        columns = {
            "img": [{"bytes": corpus.train.images[row], "path": f"{row}.bmp"} for row in span],
            "label": [corpus.train.labels[row] for row in span],
        }
        table = pyarrow.table(columns, schema=feature.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder


def png(values: Any, mode: str | None = None) -> bytes:
    """An array as a PNG."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    (image if mode is None else image.convert(mode)).save(stream, format="PNG")
    return stream.getvalue()
