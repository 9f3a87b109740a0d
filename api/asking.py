"""Routes by which students are asked: FastAPI describes them, and says what is wrong with a request.

A request in which nothing is wrong needs none of its solving of parameters, which takes longer than everything else
that is done for such a request in Python. The endpoint is called in the same way by both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.answering import Answering
from api.schemas import PredictRequest
from limbeck.runtime import Predictor

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def limit_body(request: Request, student: Predictor) -> None:
    """Before the body is read: only a student of images is sent more than a document."""
    if student.task != "image_classification":
        request.scope["body_limit"].require_document()


class QuestionRoute(APIRoute):
    """Its endpoint takes ``asked``, ``student`` and ``question``; ``model_id`` in the path names the student.

    Whom it asks it knows before the body is read, which FastAPI does before everything else.
    """

    def get_route_handler(self) -> Handler:
        solve = super().get_route_handler()

        async def ask(request: Request) -> Response:
            asked: Answering = request.app.state.answering
            student = await asked.student(request.path_params["model_id"])
            limit_body(request, student)
            question = await _question(request)
            if question is None:
                request.state.student = student
                return await solve(request)
            answer: Response = await self.endpoint(asked=asked, student=student, question=question)
            return answer

        return ask


class DirectRoute(APIRoute):
    """Its endpoint takes ``asked``, ``request`` and the texts of the path, in which nothing can be wrong."""

    def get_route_handler(self) -> Handler:
        async def call(request: Request) -> Response:
            asked: Answering = request.app.state.answering
            answer: Response = await self.endpoint(asked=asked, request=request, **request.path_params)
            return answer

        return call


async def _student(request: Request, model_id: str) -> Predictor:
    student: Predictor = request.state.student
    return student


#: What :class:`QuestionRoute` has found by the time at which FastAPI solves parameters.
Student = Annotated[Predictor, Depends(_student)]


async def _question(request: Request) -> PredictRequest | None:
    """The body's, or None where it is not plainly one: FastAPI then finds out why, in the same body."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return None  # or one that FastAPI takes as well, such as application/vnd.api+json
    try:
        return PredictRequest.model_validate(json.loads(await request.body()))
    except (ValueError, RecursionError, ClientDisconnect):  # pydantic's errors are values' errors too
        return None
