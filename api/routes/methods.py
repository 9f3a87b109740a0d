"""What can be chosen, as JSON Schemas that forms are made of."""

from __future__ import annotations

import inspect
from typing import Any

from fastapi import APIRouter

from api import examples
from api.openapi import answers, members
from api.schemas import FormView, Listing
from limbeck.config import Method, Task

router = APIRouter(prefix="/v1", tags=["forms"])


@router.get(
    "/methods",
    summary="Ways to pass knowledge on",
    responses=answers(ok=(Listing[FormView], examples.listing(examples.FORM))),
)
async def methods() -> Listing[FormView]:
    """Each with the JSON Schema of its hyper-parameters."""
    return _forms(Method)


@router.get(
    "/tasks",
    summary="What can be learned",
    responses=answers(ok=(Listing[FormView], examples.listing(examples.TASK))),
)
async def tasks() -> Listing[FormView]:
    """Each with the JSON Schema of its fields."""
    return _forms(Task)


def _forms(union: Any) -> Listing[FormView]:
    forms = [
        FormView(
            type=member.model_fields["type"].default,
            title=member.__name__,
            description=inspect.cleandoc(member.__doc__ or ""),
            json_schema=member.model_json_schema(),
        )
        for member in members(union)
    ]
    return Listing[FormView](data=forms)
