"""The command line: ``limbeck up | submit | watch | download | predict | jobs | …``. No torch."""

from limbeck.cli.app import app

__all__ = ["app"]
