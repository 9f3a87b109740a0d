"""Whether this machine has what ``LIMBECK_PREDICT_PROVIDERS`` names."""

from __future__ import annotations

from limbeck.errors import InvalidInput
from models.settings import Settings


def require_providers(settings: Settings) -> None:
    """For everything that starts servers: one that lacks what it shall compute with ends, and would be started again.

    Raises:
        InvalidInput: naming the setting, and what there is.
    """
    if not settings.predict_providers:
        return
    from limbeck.runtime.providers import choose  # a supervisor that was told nothing needs no ONNX Runtime

    try:
        choose(settings.predict_providers)
    except InvalidInput as error:
        found = "; ".join(problem.detail for problem in error.problems)
        raise InvalidInput(f"LIMBECK_PREDICT_PROVIDERS cannot be used: {found}", error.problems) from error
