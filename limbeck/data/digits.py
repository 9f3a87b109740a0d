"""``builtin:digits``: 1,797 handwritten digits of 8 × 8 pixels in 17 shades of grey, as scikit-learn carries them.

They are the test part of the "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998; UCI machine
learning repository, CC BY 4.0). The file is read from the installed package, whose code is not imported: scikit-learn
and what it needs are over a hundred megabytes, the file is 57 kilobytes.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from importlib.metadata import version
from pathlib import Path

from limbeck.config import Columns
from limbeck.data.assemble import assemble
from limbeck.data.corpus import Corpus
from limbeck.data.table import Table
from limbeck.errors import InvalidDataset, Problem

SOURCE = "builtin:digits"
_PACKAGE = "sklearn"
#: The last third is test, in the file's own order, so that nothing hangs on a draw.
_TEST_ROWS = 599
_SHADES = 16


@functools.cache
def load_digits() -> Corpus:
    """
    Raises:
        InvalidDataset: scikit-learn is not installed.
    """
    import numpy as np

    rows = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)
    images = [
        {"bytes": _encoded(row[:64].reshape(8, 8)), "path": f"digits {place}"} for place, row in enumerate(rows, 1)
    ]
    labels = [str(row[64]) for row in rows]
    cut = len(rows) - _TEST_ROWS
    spans = {"train": slice(0, cut), "test": slice(cut, None)}
    tables = {
        split: Table(
            {"image": list(images[span]), "label": list(labels[span])}, len(labels[span]), task="image_classification"
        )
        for split, span in spans.items()
    }
    revision = f"scikit-learn {version('scikit-learn')}"
    return assemble(tables, columns=Columns(), source=SOURCE, revision=revision, task="image_classification")[0]


def _file() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        detail = f"{SOURCE} is a file of scikit-learn's, which is not installed: pip install --no-deps scikit-learn"
        raise InvalidDataset(f"dataset.source: {detail}", [Problem("/dataset/source", detail)])
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def _encoded(shades: object) -> bytes:
    """Shades from 0 to 16 as a grey picture from 0 to 255; not packed, as packers do not all give the same bytes."""
    import numpy as np
    from PIL import Image

    grey = np.round(np.asarray(shades) * (255 / _SHADES)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="BMP")
    return stream.getvalue()
