"""What lists share, ``limit`` and ``cursor``, and what routes do: a strict eye on parameters that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request

from api.schemas import Envelope, Listing
from limbeck.errors import InvalidInput, Problem
from limbeck.findings import json_pointer
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
        has = f"allowed: {', '.join(allowed)}" if allowed else "this route has none"
        problems = [Problem(json_pointer([name]), f"there is no such parameter; {has}") for name in unknown]
        raise InvalidInput(f"Unknown query parameters: {', '.join(unknown)}.", problems)


async def _no_unread_parameters(request: Request) -> None:
    refuse_unknown_parameters(request, [field.alias for field in request.scope["route"].dependant.query_params])


#: Of a router none of whose routes reads parameters by hand: those that a route does not declare are refused.
STRICT = (Depends(_no_unread_parameters),)
