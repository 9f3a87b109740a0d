"""What lists share: ``limit``, ``cursor``, and a strict eye on parameters that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Query, Request

from api.schemas import Envelope, Listing
from limbeck.errors import InvalidInput, Problem
from models.repository.pages import Page

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.", max_length=500)]

Row = TypeVar("Row")
View = TypeVar("View", bound=Envelope)


def listing(page: Page[Row], view: Callable[[Row], View]) -> Listing[View]:
    """A page of rows as it travels."""
    return Listing[View](data=[view(row) for row in page.items], has_more=page.has_more, next_cursor=page.next_cursor)


def refuse_unknown_parameters(request: Request, known: Iterable[str]) -> None:
    """A misspelt filter would otherwise answer with everything, as if it had matched.

    Raises:
        InvalidInput: naming each parameter that this route does not have.
    """
    allowed = sorted(known)
    unknown = [name for name in request.query_params if name not in allowed]
    if unknown:
        problems = [
            Problem(f"/{name}", f"there is no such parameter; allowed: {', '.join(allowed)}") for name in unknown
        ]
        raise InvalidInput(f"Unknown query parameters: {', '.join(unknown)}.", problems)
