"""What several tests of the library ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.limbeck.scripted_api import Api, serving


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as api:
        yield api
