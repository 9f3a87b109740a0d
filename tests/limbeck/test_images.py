"""Images: prepared as transformers prepares them, taken in from every form, and refused by row and reason."""

from __future__ import annotations

import base64
import csv
import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image, ImageFile
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from limbeck.client.packing import pack_images
from limbeck.config import Columns, Dataset
from limbeck.data import ingest, load, preview
from limbeck.errors import InvalidDataset, InvalidInput, InvalidModel, TooSlow
from limbeck.image_files import image_splits
from limbeck.runtime import images
from limbeck.runtime.images import Picture, Preparation, stacked
from limbeck.runtime.picture_inputs import read_pictures
from tests.images import png

_DRAW = np.random.default_rng(0)
PHOTO = _DRAW.integers(0, 256, (53, 71, 3), dtype=np.uint8)
PROCESSORS = {
    "vit": (ViTImageProcessorPil(size={"height": 32, "width": 24}), {"model_type": "vit", "image_size": [32, 24]}),
    "deit": (
        DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
        {"model_type": "deit", "image_size": 32, "patch_size": 8},
    ),
    "convnext, cut": (ConvNextImageProcessorPil(size={"shortest_edge": 32}), {"model_type": "resnet"}),
    "convnext, whole": (ConvNextImageProcessorPil(size={"shortest_edge": 384}), {"model_type": "resnet"}),
    "not normalised": (
        ViTImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False),
        {"model_type": "vit", "image_size": 8},
    ),
}


def _folder(folder: Path, document: dict[str, Any] | None, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if document is not None:
        (folder / images.FILE).write_text(json.dumps(document))
    return folder


def _prepared(folder: Path, data: bytes) -> np.ndarray:
    preparation = Preparation.read(folder)
    pixels = preparation.pixels(images.opened(data))
    return stacked([Picture(pixels, preparation.table(), preparation.places)])["pixel_values"][0]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("turned", [False, True], ids=["wide", "high"])
def test_images_are_prepared_as_transformers_prepares_them(tmp_path: Path, name: str, turned: bool) -> None:
    """Guards against students that are asked other pixels than plain transformers would give them."""
    processor, config = PROCESSORS[name]
    photo = PHOTO.transpose(1, 0, 2) if turned else PHOTO
    folder = _folder(tmp_path, json.loads(processor.to_json_string()), **config)
    expected = processor(Image.fromarray(photo), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(_prepared(folder, png(photo)), expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "side"), [("vit", 16), ("resnet", 224)])
def test_a_model_without_a_preparation_gets_what_its_type_is_usually_given(
    tmp_path: Path, kind: str, side: int
) -> None:
    """Guards the default, and that what a student's folder then carries says the same."""
    folder = _folder(tmp_path, None, model_type=kind, **({"image_size": 16} if kind == "vit" else {}))
    preparation = Preparation.read(folder)
    assert (preparation.height, preparation.width) == (side, side)
    (folder / images.FILE).write_text(json.dumps(images.document_of(folder)))
    assert Preparation.read(folder) == preparation


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_sixteen_bits_keeps_its_shades(tmp_path: Path, channels: int) -> None:
    """Guards X-rays and depth maps, which Pillow's own conversion makes white above 255 of 65,535."""
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    folder = _folder(tmp_path, None, model_type="vit", image_size=4, num_channels=channels)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    pixels = Preparation.read(folder).pixels(images.opened(stream.getvalue()))
    assert (pixels == (ramp >> 8)[None]).all()


def test_grey_palettes_and_turned_cameras_are_read_as_people_see_them(tmp_path: Path) -> None:
    """Guards against a model of one channel that is given three, photos on their side, and
    75 MB that a photo takes once more."""
    folder = _folder(tmp_path, None, model_type="vit", image_size=4, num_channels=1)
    assert _prepared(folder, png(PHOTO)).shape == (1, 4, 4)
    palette = Image.fromarray(PHOTO).convert("P")
    palette.info["transparency"] = b"\x00" * 128 + b"\xff" * 128
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=palette.info["transparency"])
    assert _prepared(_folder(tmp_path, None, model_type="vit", image_size=4), stream.getvalue()).shape == (3, 4, 4)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PHOTO).save(turned, "JPEG", exif=exif)
    assert images.opened(turned.getvalue()).size == (53, 71)
    assert (np.asarray(images.opened(turned.getvalue())) == np.rot90(Image.open(turned), -1)).all()
    assert isinstance(images.opened(png(PHOTO)), ImageFile.ImageFile)  # what was decoded, and not a copy of it


def test_images_are_read_until_the_deadline(tmp_path: Path) -> None:
    """Guards against half a minute of decoding for a caller who has been refused, in a thread that others wait for."""
    preparation = Preparation.read(_folder(tmp_path, None, model_type="vit", image_size=4))
    assert len(read_pictures([png(PHOTO)] * 2, preparation, until=time.monotonic() + 60)) == 2
    with pytest.raises(TooSlow):
        read_pictures([b"never looked at"] * 2, preparation, until=time.monotonic() - 1)


_CUT = {"image_processor_type": "DeiTImageProcessor", "crop_size": 8}
_SHORT = {"image_processor_type": "ConvNextImageProcessor"}


@pytest.mark.parametrize(
    ("document", "config", "said"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, {}, "CLIPImageProcessor; allowed: ViT"),
        ({"size": {"height": 8, "width": 8}}, {"image_size": 16}, "8 × 8 pixels; the model reads 16 × 16"),
        ({"size": 8, "image_mean": [0.5]}, {"image_size": 8}, "1 values of image_mean; the model reads 3"),
        ({"size": {"longest_edge": 8}}, {}, "a value that cannot be read: KeyError"),
        ({"size": 8}, {"num_channels": 4, "image_size": 8}, "4 channels; allowed: 1"),
        (None, {"num_channels": "rgb", "image_size": 8}, "a value that cannot be read: .*rgb"),
        (None, {"num_channels": 10**12, "image_size": 8}, "1000000000000 channels; allowed: 1"),
        (None, {"num_channels": None, "image_size": 8}, "a value that cannot be read: .*NoneType"),
        ({"size": 8}, {"image_size": "x"}, "a value that cannot be read: .*x"),
        ({"size": 8}, {"image_size": {"a": 1}}, "a value that cannot be read: KeyError"),
        ({"size": 8}, {"image_size": 8, "patch_size": 0}, "a value that cannot be read: ZeroDivisionError"),
        ({"size": 8}, {"image_size": 8, "patch_size": [2]}, "a value that cannot be read"),
        ({"size": 8, "rescale_factor": "x"}, {}, "a value that cannot be read: .*x"),
        ({"size": 8, "rescale_factor": None}, {}, "a value that cannot be read: .*NoneType"),
        ({"size": 8, "resample": "x"}, {}, "a value that cannot be read: .*x"),
        ({"size": 8, "resample": 99}, {}, "a value that cannot be read: .*99 is not a valid Resampling"),
        ({"size": 8, "image_mean": ["a", 0, 0]}, {}, "a value that cannot be read: .*a"),
        ({"size": 8, "image_mean": None}, {}, "a value that cannot be read: .*NoneType"),
        ({"size": float("inf")}, {}, "a value that cannot be read: OverflowError"),
        ({"size": 8, "image_std": [0, 0, 0]}, {}, "values that are no finite numbers"),
        ({"size": 8, "image_mean": [1e300, 0, 0]}, {}, "values that are no finite numbers"),
        ({"size": 8, "rescale_factor": float("nan")}, {}, "values that are no finite numbers"),
        ({"size": 0}, {}, "0 × 0 pixels; allowed: at least one, and at most 25,000,000"),
        ({"size": -8}, {}, "-8 × -8 pixels; allowed"),
        ({"size": 100_000}, {}, "100000 × 100000 pixels; allowed"),
        ({**_CUT, "size": 100_000}, {}, "100000 × 100000 pixels; allowed"),
        ({**_SHORT, "size": 224, "crop_pct": 1e-9}, {}, "pixels; allowed"),
        ({**_SHORT, "size": 0}, {}, "0 × 0 pixels; allowed"),
    ],
)
def test_preparations_that_are_not_known_are_refused(
    tmp_path: Path, document: dict[str, Any] | None, config: dict[str, Any], said: str
) -> None:
    """Guards against images that are silently prepared otherwise than in the teacher's own training, and uploads that
    are accepted, or end without a reason, where a number is none."""
    with pytest.raises(InvalidModel, match=said):
        Preparation.read(_folder(tmp_path, document, model_type="vit", **config))


def _bomb(side: int) -> bytes:
    """A PNG that tells of ``side`` squared pixels and holds none."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\x00")), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_bomb(6_000), "6,000 × 6,000 pixels; allowed: at most 25,000,000"),
        (_bomb(12_000), "too many pixels|12,000 × 12,000"),
        (_bomb(60_000), "too many pixels"),
        (png(PHOTO)[:200], "broken"),
        (b"GIF89a", "no image that can be read|broken"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "allowed: PNG, JPEG, WEBP, BMP, GIF"),
        (b"\x00" * (images.MOST_BYTES + 1), "bytes; allowed: at most 10,485,760"),
    ],
    ids=["large", "warned", "bomb", "cut off", "empty", "postscript", "heavy"],
)
def test_bombs_and_broken_images_are_refused_before_they_are_unpacked(data: bytes, said: str) -> None:
    """Guards the server's memory, and Pillow's readers that start other programs."""
    with pytest.raises(InvalidInput, match=said):
        images.opened(data)


@pytest.mark.parametrize("turned", [False, True], ids=["high", "wide"])
def test_a_narrow_image_is_not_enlarged_without_bounds(tmp_path: Path, turned: bool) -> None:
    """Guards the server's memory, and a job's: 467 bytes of 1 × 100,000 pixels would be 20 GB at a shorter edge of 256,
    whatever is cut out of them afterwards."""
    preparation = Preparation.read(_folder(tmp_path, None, model_type="resnet"))
    assert preparation.resize == 256
    narrow = images.opened(png(np.zeros((1, 100_000) if turned else (100_000, 1))))
    told = ["100,000 × 1", "25,600,000 × 256"] if turned else ["1 × 100,000", "256 × 25,600,000"]
    with pytest.raises(
        InvalidInput, match=f"has {told[0]} pixels and would be enlarged to {told[1]}; allowed: at most"
    ):
        preparation.pixels(narrow)
    assert preparation.pixels(images.opened(png(np.zeros((20, 1))))).shape == (3, 224, 224)


def _rows(count: int = 40) -> list[tuple[bytes, str]]:
    return [(png(_DRAW.integers(0, 256, (6, 6), dtype=np.uint8)), ("odd", "even")[row % 2]) for row in range(count)]


def _written(folder: Path, form: str, rows: list[tuple[bytes, str]]) -> tuple[Path, str]:
    coded = [(base64.b64encode(data).decode(), label) for data, label in rows]
    if form == "csv":
        path = folder / "train.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("image", "label"), *coded])
    elif form == "jsonl":
        path = folder / "train.jsonl"
        path.write_text("".join(json.dumps({"image": data, "label": label}) + "\n" for data, label in coded))
    else:
        path = folder / "train.parquet"
        cells: list[Any] = [data for data, _ in rows]
        if form == "hub":
            cells = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(cells)]
        pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": [label for _, label in rows]}), path)
    return path, path.name


@pytest.mark.parametrize("form", ["csv", "jsonl", "bytes", "hub", "folder"])
def test_the_same_images_are_the_same_data_set_in_every_form(tmp_path: Path, form: str) -> None:
    """Guards against columns of images that are taken for texts, and against bytes that change on the way."""
    rows = _rows()
    reference = tmp_path / "hub"
    reference.mkdir()
    expected = ingest({"train": _written(reference, "hub", rows)}, reference)
    if form == "folder":
        for row, (data, label) in enumerate(rows):
            place = tmp_path / "pictures" / "train" / label / f"{row:03}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        corpus = load(Dataset(source=f"path:{tmp_path / 'pictures'}"), seed=0)
        packed = pack_images(image_splits(tmp_path / "pictures"), tmp_path)
        uploaded = ingest({"train": (packed["train"], packed["train"].name)}, tmp_path)
        assert uploaded.sha256 == corpus.sha256
        assert {image for image, _ in rows} == {
            image for split in (corpus.train, corpus.validation, corpus.test) for image in split.images or ()
        }
        assert (corpus.task, corpus.labels) == ("image_classification", ("even", "odd"))
        assert corpus.train.texts[0].startswith("even/")
        return
    out = tmp_path / "out"
    out.mkdir()
    found = ingest({"train": _written(tmp_path, form, rows)}, out)
    assert found.profile["task"] == "image_classification"
    assert found.profile["columns"] == {"image": "image", "label": "label"}
    assert found.sha256 == expected.sha256
    (first,) = preview(out / "train.parquet", 1)
    assert (first["image"]["width"], first["image"]["height"]) == (6, 6)
    assert json.dumps(first)
    stored = load(Dataset(source="dataset:ds_1"), seed=0, sources={"dataset:ds_1": out})
    assert stored.sha256 == expected.sha256


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b"no image", "row 4, column 'image': this is no image that can be read"),
        (_bomb(6_000), "row 4, column 'image': the image has 6,000 × 6,000 pixels"),
        (b"", "row 4, column 'image': the image is missing"),
    ],
    ids=["broken", "large", "missing"],
)
@pytest.mark.parametrize("form", ["jsonl", "hub"])
def test_an_image_that_cannot_be_used_is_named_by_its_row(tmp_path: Path, form: str, broken: bytes, said: str) -> None:
    """Guards against uploads that only a job would find broken, hours later."""
    rows = _rows()
    rows[3] = broken, "odd"
    with pytest.raises(InvalidDataset, match=said):
        ingest({"train": _written(tmp_path, form, rows)}, tmp_path)


def test_half_a_character_in_an_images_path_is_named_by_its_row(tmp_path: Path) -> None:
    """Guards against an upload that ends without a reason: no file takes the half of a character as a name."""
    rows = [{"image": {"bytes": base64.b64encode(data).decode(), "path": "a.png"}, "label": x} for data, x in _rows()]
    rows[3]["image"]["path"] = "\ud800.png"  # type: ignore[index]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidDataset, match=r"row 4, column 'image': U\+D800 at character 1 is half a character"):
        ingest({"train": (path, path.name)}, tmp_path)


def test_a_path_alone_and_texts_are_no_images(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": f"{row}.png"} for row in range(40)]
    cells[0] = {"bytes": png(PHOTO), "path": "0.png"}
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": ["a", "b"] * 20}), path)
    with pytest.raises(InvalidDataset, match=r"row 2, column 'image': found the path '1\.png' alone"):
        ingest({"train": (path, path.name)}, tmp_path)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"picture": f"a text {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)))
    with pytest.raises(InvalidDataset, match="row 1, column 'picture': this is no image in base64"):
        ingest({"train": (path, path.name)}, tmp_path, columns=Columns(image="picture"))


def test_a_caption_beside_an_image_is_still_a_text(tmp_path: Path) -> None:
    """Guards data sets of texts that carry images along: nobody asked for another task."""
    rows = [{"text": f"sentence number {row}", "image": png(PHOTO), "label": "ab"[row % 2]} for row in range(40)]
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert ingest({"train": (path, path.name)}, tmp_path).profile["task"] == "sequence_classification"


def test_the_digits_are_scikit_learns() -> None:
    """Guards the reading of its file without its code."""
    from sklearn.datasets import load_digits as reference

    corpus = load(Dataset(source="builtin:digits"), seed=0)
    digits = reference()
    assert (len(corpus.train) + len(corpus.validation), len(corpus.test)) == (1198, 599)
    assert [corpus.labels[label] for label in corpus.test.labels] == [str(one) for one in digits.target[1198:]]
    shades = np.asarray(images.opened((corpus.test.images or [])[0])) / 255 * 16
    np.testing.assert_allclose(shades, digits.images[1198], atol=0.05)
