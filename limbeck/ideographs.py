"""The characters of scripts that put no blank between words. Imports nothing of Limbeck's."""

from __future__ import annotations

import re

#: Ideographs and kana, as a class of a regular expression has them.
SCRIPT = "\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
IDEOGRAPH = re.compile(f"[{SCRIPT}]")
