"""``python -m worker``, whole, with the stand-ins for what computes."""

from __future__ import annotations

import sys
from pathlib import Path

from models.settings import Settings
from worker import logs
from worker.__main__ import serve

if __name__ == "__main__":
    settings = Settings()
    logs.configure(settings)
    trainer, answerer = (Path(__file__).with_name(f"stand_in_{name}.py") for name in ("trainer", "answerer"))
    sys.exit(serve(settings, [sys.executable, str(trainer)], [sys.executable, str(answerer)]))
