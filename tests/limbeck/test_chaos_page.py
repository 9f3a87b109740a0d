"""The tables of ``docs/reliability.md`` are those of the runs that are kept."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.chaos.__main__ import PAGE, write_page


def test_the_page_is_written_from_the_runs_that_are_kept(tmp_path: Path) -> None:
    """Guards against a page that tells of other runs, and against one that takes another run to write."""
    page, written = tmp_path / "reliability.md", PAGE.read_text(encoding="utf-8")
    page.write_text(re.sub(r"(:begin -->\n).*?(\n<!--)", r"\1old\2", written, flags=re.S), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != written
    write_page(page)
    assert page.read_text(encoding="utf-8") == written
