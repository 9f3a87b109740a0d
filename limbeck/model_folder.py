"""What a model's folder holds: read from its configuration and its safetensors headers, no torch."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import TASKS
from limbeck.errors import InvalidModel
from limbeck.families import FAMILIES, families_for, family_of

if TYPE_CHECKING:
    from limbeck.tasks.base import Task

_PICKLES = frozenset({".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_HEADER_LIMIT = 100 * 1024**2
_INDEX = "model.safetensors.index.json"
_MOST_LAYERS = 1_000
#: An architecture's name. A database has room for so many characters.
_CLASS = re.compile(r"\w{0,100}")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "dim", "d_model")
_HEADS = ("num_attention_heads", "n_heads")
_NEURONS = ("intermediate_size", "hidden_dim")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a Hugging Face folder says about itself."""

    architecture: str
    model_type: str
    layers: int
    hidden_size: int
    labels: tuple[str, ...] | None  #: of its head; none for a bare encoder
    has_head: bool  #: whether it was saved with the head of a task that Limbeck has
    parameters: int
    bytes: int  #: of its safetensors files
    max_positions: int | None  #: the most tokens that it reads
    heads: int = 0  #: of each layer; 0 where nothing is said
    intermediate_size: int = 0  #: neurons of each feed-forward part; 0 where nothing is said
    embedding_size: int | None = None  #: width of the word table where it is one of its own
    stages: tuple[int, ...] = ()  #: of a network in stages, the residual blocks of each; ``layers`` is their sum
    like_layers: bool = True  #: whether all layers see the same; some of ModernBERT's see a window around each token
    pooling: str | None = (
        None  #: how it makes vectors of texts, where its folder says that: ``mean``, ``cls`` or others
    )

    def has_head_for(self, task: Task) -> bool:
        """Whether its head is of the kind that the task needs; whether it has the right labels is another matter."""
        return task.headless or (self.has_head and self.architecture.endswith(task.architecture))


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
    _require_shards(folder)
    parameters = sum(math.prod(one["shape"]) for one in tensors.values())
    facts = replace(config_facts(config, parameters=parameters, bytes=size), pooling=_pooling(folder))
    return _with_found_head(facts, tensors)


def _pooling(folder: Path) -> str | None:
    """As the package sentence-transformers notes it; a layer behind the pooling is named, as it is not read."""
    file = folder / "1_Pooling" / "config.json"
    noted = _read_json(file) if file.is_file() else {}
    modes = [
        name.removeprefix("pooling_mode_") for name, on in noted.items() if name.startswith("pooling_mode_") and on
    ]
    if "Dense" in ((folder / "modules.json").read_text() if (folder / "modules.json").is_file() else ""):
        modes.append("a dense layer")
    return " and ".join({"mean_tokens": "mean", "cls_token": "cls"}.get(mode, mode) for mode in modes) or None


def _with_found_head(facts: ModelFacts, tensors: Mapping[str, Any]) -> ModelFacts:
    """What the weights say of the head. A head that only config.json tells of would answer at random."""
    task = _task_of(facts.architecture)
    if task is None or facts.model_type not in FAMILIES:
        return facts
    head = tensors.get(task.head_tensor(facts.model_type))
    if head is None:
        return replace(facts, has_head=False, labels=None)
    if facts.labels is not None and head["shape"] != [len(facts.labels), *head["shape"][1:]]:
        raise InvalidModel(
            f"The head's weights are of the shape {head['shape']}; config.json has {len(facts.labels)} labels."
        )
    return facts


def _task_of(architecture: str) -> Task | None:
    """A task whose kind of head the architecture has."""
    heads = (task for task in TASKS.values() if not task.headless)
    return next((task() for task in heads if architecture.endswith(task.architecture)), None)


def _require_shards(folder: Path) -> None:
    """Weights in several files: each that the index names has to be there."""
    if not (folder / _INDEX).exists():
        return
    named = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(named, dict):
        raise InvalidModel(f"{_INDEX} has no weight_map.")
    missing = sorted({str(file) for file in named.values()} - {file.name for file in folder.glob("*.safetensors")})
    if missing:
        raise InvalidModel(f"{missing[0]} is missing: {_INDEX} names it.")


def config_facts(config: Mapping[str, Any], *, parameters: int, bytes: int) -> ModelFacts:
    """The same where only ``config.json`` is at hand, and its weights are known from elsewhere or not at all (0).

    Raises:
        InvalidModel: it does not describe a model.
    """
    if not isinstance(config.get("model_type"), str):
        raise InvalidModel("config.json does not say which model_type it is of.")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(
        isinstance(one, str) and _CLASS.fullmatch(one) for one in architectures
    ):
        raise InvalidModel("config.json has architectures that are not a list of names.")
    architecture = architectures[0] if architectures else ""
    task = _task_of(architecture)
    has_head = task is not None
    stages = _stages(config)
    if not stages and config["model_type"] not in FAMILIES and not any(name in config for name in _LAYERS):
        allowed = ", ".join(families_for("text") + families_for("image"))
        raise InvalidModel(f"config.json is of a model of the type {config['model_type']!r}; allowed: {allowed}.")
    layers = sum(stages) or _number(config, _LAYERS)
    if layers > _MOST_LAYERS:
        raise InvalidModel(f"config.json tells of {layers:,} layers; at most {_MOST_LAYERS:,} are allowed.")
    return ModelFacts(
        architecture=architecture or config["model_type"],
        model_type=config["model_type"],
        layers=layers,
        hidden_size=config["hidden_sizes"][-1] if stages else _number(config, _WIDTHS),
        stages=stages,
        labels=None if task is None or task.of_words else _labels(config),
        has_head=has_head,
        parameters=parameters,
        bytes=bytes,
        max_positions=_positions(config),
        heads=_optional(config, _HEADS) or 0,
        intermediate_size=_optional(config, _NEURONS) or 0,
        embedding_size=None if stages else _optional(config, ("embedding_size",)),
        like_layers=_like_layers(config, layers),
    )


def _like_layers(config: Mapping[str, Any], layers: int) -> bool:
    """By the list of what each layer sees or, in folders of earlier versions, by every how many one sees all."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return len({str(kind) for kind in kinds}) <= 1
    family = FAMILIES.get(config["model_type"])
    if family is None or not family.windowed:
        return True
    return layers == 1 or config.get("global_attn_every_n_layers", 3) == 1


def check_model_folder(folder: Path) -> ModelFacts:
    """Check that an uploaded folder is a whole model that Limbeck can use, and that can be read without running code.

    Raises:
        InvalidModel: naming the file that is missing, broken or not allowed.
    """
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _PICKLES:
            name = file.relative_to(folder).as_posix()
            raise InvalidModel(f"{name} is not allowed: weights are taken as safetensors only, pickles can run code.")
    facts = model_facts(folder)
    if family_of(facts.model_type).reads == "image":
        from limbeck.runtime.images import Preparation

        Preparation.read(folder)
    elif not any((folder / name).exists() for name in _TOKENIZERS):
        expected = f"The folder has no tokenizer; expected one of {', '.join(_TOKENIZERS)}."
        raise InvalidModel(sentencepiece_alone(folder) or expected)
    task = _task_of(facts.architecture)
    if task is not None and not task.of_words and not facts.has_head:
        raise InvalidModel(f"config.json tells of a {facts.architecture}; the weights have no classification head.")
    return facts


def sentencepiece_alone(folder: Path) -> str | None:
    """What to do about a tokenizer that is a SentencePiece model and nothing else, which transformers reads only where
    a package is installed that is none of Limbeck's; None where the folder has another, or no such model."""
    found = [file.name for file in sorted(folder.glob("*.model"))]
    if not found or any((folder / name).exists() for name in _TOKENIZERS):
        return None
    return (
        f"The folder has its tokenizer as {found[0]} alone; it has to have tokenizer.json. Where the package "
        "sentencepiece is installed, transformers makes it: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
    )


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
            end = max((_end_of(one) for one in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidModel(f"{file.name} has a header that cannot be read: {error}") from error
    if 8 + length + end != size:
        raise InvalidModel(f"{file.name} is cut off: it has {size:,} bytes, its header tells of {8 + length + end:,}.")
    return tensors


def _end_of(tensor: Mapping[str, Any]) -> int:
    """Where a tensor's bytes end; checks that what is read of it later is what it should be."""
    numbers = [*tensor["shape"], *tensor["data_offsets"]]
    if len(tensor["data_offsets"]) != 2 or not all(type(one) is int and one >= 0 for one in numbers):
        raise ValueError("a shape or an offset is no whole number")
    return int(tensor["data_offsets"][1])


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InvalidModel("The folder has no config.json; save the model with save_pretrained().")
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidModel(f"{path.name} is not a JSON object.")
    return document


def _positions(config: Mapping[str, Any]) -> int | None:
    """The most tokens that are read: RoBERTa counts positions from behind that of its padding."""
    most = config.get("max_position_embeddings")
    if type(most) is not int:
        return None
    padding = config.get("pad_token_id")
    family = FAMILIES.get(config["model_type"])
    before = (padding if type(padding) is int else 1) + 1 if family is not None and family.offset else 0
    return most - before


def _stages(config: Mapping[str, Any]) -> tuple[int, ...]:
    """How many blocks each stage has, of networks that are made of stages."""
    depths, widths = config.get("depths"), config.get("hidden_sizes")
    if config["model_type"] not in FAMILIES or not FAMILIES[config["model_type"]].stages:
        return ()
    for name, values in (("depths", depths), ("hidden_sizes", widths)):
        if not isinstance(values, list) or not values or not all(type(one) is int and one > 0 for one in values):
            raise InvalidModel(f"config.json has no {name}, a list of whole numbers.")
    assert isinstance(depths, list)
    assert isinstance(widths, list)
    if len(depths) != len(widths):
        raise InvalidModel(f"config.json has {len(depths)} depths and {len(widths)} hidden_sizes.")
    return tuple(depths)


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = next((config[name] for name in names if name in config), None)
    if type(value) is not int or value < 1:
        raise InvalidModel(f"config.json has no {names[0]}.")
    return value


def _optional(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    value = next((config[name] for name in names if name in config), None)
    return value if type(value) is int and value > 0 else None


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        return ("LABEL_0", "LABEL_1")  # what transformers assumes where nothing is said
    if not all(key.isdecimal() for key in named):
        raise InvalidModel(f"config.json has an id2label whose keys are no numbers: {', '.join(named)[:80]}.")
    return tuple(str(named[key]) for key in sorted(named, key=int))
