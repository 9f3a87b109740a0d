"""Images to arrays, as transformers' image processors make them, by Pillow and numpy alone.

Training, the export's check and the runtime read images here, so that a student is asked what it was trained on. What
comes out is 8 bits a value; a table of 256 entries for each channel then rescales and normalises it, to the same
float32 numbers as the processors (transformers 5 without torchvision computes likewise).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck.errors import InvalidInput, InvalidModel

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
#: Of an encoded image.
MOST_BYTES = 10 * 1024**2
#: A few kilobytes can stand for billions of pixels: what the header says is read before anything is unpacked.
MOST_PIXELS = 25_000_000
#: The file of a model's folder that says how its images are prepared.
FILE = "preprocessor_config.json"

#: transformers' processors that are known, and which way of resizing each has.
_PROCESSORS = {"ViT": "exact", "DeiT": "exact", "ConvNext": "convnext"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_PATCH = 256  # pixels that count as one token where a model has no patches: 16 × 16, as a ViT's


def from_base64(text: str) -> bytes:
    """The bytes of an image in a JSON text; a data URL (``data:image/png;base64,…``) is read as well.

    Raises:
        InvalidInput: it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("this is no image in base64") from error


def opened(data: bytes) -> Image.Image:
    """An encoded image, decoded and turned as its camera was held; of an animation the first picture.

    Raises:
        InvalidInput: it is too large, broken, or of no format that is read.
    """
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"the image has {len(data):,} bytes; allowed: at most {MOST_BYTES:,}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise InvalidInput(
                f"the image has {image.width:,} × {image.height:,} pixels; allowed: at most {MOST_PIXELS:,} altogether"
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # else an image that stands upright is copied whole
        return _of_bytes(image)
    except UnidentifiedImageError as error:
        raise InvalidInput(f"this is no image that can be read; allowed: {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"the image has too many pixels; allowed: at most {MOST_PIXELS:,} altogether") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise InvalidInput(f"the image is broken: {error}") from error


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a model's images are brought to its size and range."""

    channels: int  #: 1 (grey) or 3 (red, green, blue)
    height: int
    width: int
    #: To (height, width) whatever the shape, or to a shorter edge of so many pixels; None: images come in their size.
    resize: tuple[int, int] | int | None
    resample: Image.Resampling
    rescale: float
    mean: tuple[float, ...]  #: by channel; none where nothing is normalised
    std: tuple[float, ...]
    places: int  #: what an image counts as among tokens: of a ViT its patches and what stands beside them

    @classmethod
    def read(cls, folder: Path) -> Preparation:
        """Of a model's folder.

        Raises:
            InvalidModel: it is prepared in a way that is not known, or not to the size that the model reads; or a
                number is none, or none that an image can be prepared with.
        """
        try:
            found = cls._read(folder)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidModel(f"{FILE} or config.json has a value that cannot be read: {error!r}.") from error
        found._require_possible()
        return found

    @classmethod
    def _read(cls, folder: Path) -> Preparation:
        config = _json(folder / "config.json")
        channels = int(config.get("num_channels", 3))
        if channels not in (1, 3):
            raise InvalidModel(f"The model reads images of {channels} channels; allowed: 1 (grey) or 3 (colours).")
        document = document_of(folder)
        resize, height, width = _sizes(document)
        _require_size(config, height, width)
        normalise = document.get("do_normalize", True)
        mean, std = (_channels(document, name, channels) if normalise else () for name in ("image_mean", "image_std"))
        scale = float(document.get("rescale_factor", 1 / 255)) if document.get("do_rescale", True) else 1.0
        places, resample = _places(config, height, width), Image.Resampling(int(document.get("resample", 2)))
        return cls(channels, height, width, resize, resample, scale, mean, std, places)

    def _require_possible(self) -> None:
        resized = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        for height, width in ((self.height, self.width), resized or (1, 1)):
            if min(height, width) < 1 or height * width > MOST_PIXELS:
                raise InvalidModel(
                    f"{FILE} makes images of {height} × {width} pixels; allowed: at least one, and at most "
                    f"{MOST_PIXELS:,} altogether."
                )
        with np.errstate(all="ignore"):
            if not np.isfinite(self.table()).all():
                raise InvalidModel(f"{FILE} brings images to values that are no finite numbers.")

    def table(self) -> NDArray[np.float32]:  # (channels, 256)
        """What each of the 256 values becomes in each channel."""
        values = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        if not self.mean:
            return np.tile(values, (self.channels, 1))
        mean, std = (np.array(found, dtype=np.float32)[:, None] for found in (self.mean, self.std))
        table: NDArray[np.float32] = (values[None, :] - mean) / std
        return table

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:  # (channels, height, width)
        """An image in the model's size, not yet normalised.

        Raises:
            InvalidInput: it is so narrow that it would be enlarged beyond all bounds.
        """
        image = _coloured(image, self.channels)
        if self.resize is not None:
            height, width = self._resized(image)
            if height * width > MOST_PIXELS:
                raise InvalidInput(
                    f"the image has {image.width:,} × {image.height:,} pixels and would be enlarged to {width:,} × "
                    f"{height:,}; allowed: at most {MOST_PIXELS:,} altogether"
                )
            image = image.resize((width, height), resample=self.resample)
        if (image.height, image.width) != (self.height, self.width):
            top, left = (image.height - self.height) // 2, (image.width - self.width) // 2
            image = image.crop((left, top, left + self.width, top + self.height))
        values = np.asarray(image).reshape(self.height, self.width, self.channels)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) before the middle is cut out."""
        if not isinstance(self.resize, int):
            assert self.resize is not None
            return self.resize
        short, long = sorted((image.height, image.width))
        longer = int(self.resize * long / short)
        return (self.resize, longer) if image.height <= image.width else (longer, self.resize)


@dataclass(frozen=True, slots=True)
class Picture:
    """One example as pixels, a row beside :class:`~limbeck.runtime.encoding.Row`."""

    pixels: NDArray[np.uint8]  # (channels, height, width)
    table: NDArray[np.float32]  # (channels, 256)
    places: int

    def __len__(self) -> int:
        return self.places


def stacked(pictures: Sequence[Picture]) -> dict[str, NDArray[np.float32]]:
    """One batch: ``pixel_values``, (examples, channels, height, width)."""
    return {"pixel_values": normalised(np.stack([one.pixels for one in pictures]), pictures[0].table)}


def normalised(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """(examples, channels, height, width), by the channels' tables, (channels, 256)."""
    values = np.empty(pixels.shape, dtype=np.float32)
    for channel, known in enumerate(table):
        np.take(known, pixels[:, channel], out=values[:, channel])
    return values


def document_of(folder: Path) -> dict[str, Any]:
    """The folder's ``preprocessor_config.json``; where there is none, what its model type is usually given.

    Raises:
        InvalidModel: it is no JSON.
    """
    if (folder / FILE).is_file():
        return _json(folder / FILE)
    config = _json(folder / "config.json")
    channels = int(config.get("num_channels", 3))
    if config.get("model_type") == "resnet":
        norm = {name: values[:channels] for name, values in _IMAGENET.items()}
        size = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}
        return {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, **size, **norm}
    height, width = _pair(config.get("image_size", 224))
    norm = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    size = {"size": {"height": height, "width": width}, "resample": 2}
    return {"image_processor_type": "ViTImageProcessor", "do_resize": True, **size, **norm}


def _of_bytes(image: Image.Image) -> Image.Image:
    """Grey of 16 bits by its upper eight, as Pillow opens colours of 16; it would make all grey above 255 white."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode.startswith("I") else image


def _coloured(image: Image.Image, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the way from a palette with transparency to RGB
    return image.convert(mode)


def _sizes(document: Mapping[str, Any]) -> tuple[tuple[int, int] | int | None, int, int]:
    """What is resized to, and the height and width in the end.

    Raises:
        InvalidModel: the processor is not known, or cuts out more than there is.
        LookupError, TypeError, ValueError, ArithmeticError: a size cannot be read.
    """
    name = str(document.get("image_processor_type") or document.get("feature_extractor_type") or "ViTImageProcessor")
    family = next((one for one in _PROCESSORS if name.startswith((f"{one}Image", f"{one}Feature"))), None)
    if family is None:
        known = ", ".join(f"{one}ImageProcessor" for one in _PROCESSORS)
        raise InvalidModel(f"{FILE} is of a {name}; allowed: {known}.")
    size = document.get("size", 224)
    resize: tuple[int, int] | int | None
    if _PROCESSORS[family] == "convnext":
        edge = int(size["shortest_edge"] if isinstance(size, Mapping) else size)
        # As ConvNext's own evaluation has it: small images are cut from somewhat larger ones, large ones are not.
        resize = int(edge / float(document.get("crop_pct", 0.875))) if edge < 384 else (edge, edge)
        return (resize if document.get("do_resize", True) else None), edge, edge
    resize = _pair(size) if document.get("do_resize", True) else None
    cropped = document.get("do_center_crop", family == "DeiT")
    height, width = _pair(document.get("crop_size", 224)) if cropped else _pair(size)
    if resize is not None and (resize[0] < height or resize[1] < width):
        raise InvalidModel(f"{FILE} cuts {height} × {width} pixels out of {resize[0]} × {resize[1]}.")
    return resize, height, width


def _pair(size: Any) -> tuple[int, int]:
    """(height, width)"""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _require_size(config: Mapping[str, Any], height: int, width: int) -> None:
    reads = config.get("image_size")
    if reads is not None and _pair(reads) != (height, width):
        shown = " × ".join(map(str, _pair(reads)))
        raise InvalidModel(f"{FILE} makes images of {height} × {width} pixels; the model reads {shown}.")


def _channels(document: Mapping[str, Any], name: str, channels: int) -> tuple[float, ...]:
    found = document.get(name, [0.5] * channels)
    values = tuple(float(value) for value in (found if isinstance(found, list) else [found] * channels))
    if len(values) != channels:
        raise InvalidModel(f"{FILE} has {len(values)} values of {name}; the model reads {channels} channels.")
    return values


def _places(config: Mapping[str, Any], height: int, width: int) -> int:
    patch = config.get("patch_size")
    if patch is None:
        return max(1, height * width // _PATCH)
    high, wide = _pair(patch)
    return (height // high) * (width // wide) + (2 if config.get("model_type") == "deit" else 1)


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidModel(f"{path.name} is not a JSON object.")
    return document
