"""``python -m worker``, whole, with the stand-in trainer."""

from __future__ import annotations

import sys
from pathlib import Path

from models.settings import Settings
from worker import logs
from worker.__main__ import serve

if __name__ == "__main__":
    settings = Settings()
    logs.configure(settings)
    sys.exit(serve(settings, [sys.executable, str(Path(__file__).with_name("stand_in_trainer.py"))]))
