"""Routes by which students are asked: FastAPI describes them, and says what is wrong with a request.

A request in which nothing is wrong needs none of its solving of parameters, which takes longer than everything else
that is done for such a request in Python. The endpoint is called in the same way by both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_type_hints

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.answering import Answering
from api.schemas import InferenceRequest, PredictRequest
from limbeck.runtime import Predictor

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def limit_body(request: Request, student: Predictor) -> None:
    """Before the body is read: only a student of images is sent more than a document."""
    if student.task != "image_classification":
        request.scope["body_limit"].require_document()


class QuestionRoute(APIRoute):
    """Its endpoint takes ``request``, ``asked``, ``student``, ``question``, and ``until``, the deadline; the path's
    ``model_id`` names the student.

    Whom it asks it knows before the body is read, which FastAPI does before everything else.
    """

    def get_route_handler(self) -> Handler:
        solve = super().get_route_handler()
        document: type[PredictRequest] = get_type_hints(self.endpoint)["question"]

        async def ask(request: Request) -> Response:
            asked: Answering = request.app.state.answering
            until = asked.deadline()
            student = await asked.student(request.path_params["model_id"], until)
            limit_body(request, student)
            began = time.monotonic()
            question = await _question(request, document, student)
            until += time.monotonic() - began  # how long the body takes to come is its sender's affair
            if question is None:
                request.state.student, request.state.until = student, until
                return await solve(request)
            answer: Response = await self.endpoint(
                request=request, asked=asked, student=student, question=question, until=until
            )
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


async def _until(request: Request) -> float:
    until: float = request.state.until
    return until


#: What :class:`QuestionRoute` has found by the time at which FastAPI solves parameters, and the question's deadline.
Student = Annotated[Predictor, Depends(_student)]
Until = Annotated[float, Depends(_until)]


async def _question(request: Request, document: type[PredictRequest], student: Predictor) -> PredictRequest | None:
    """The body's, or None where it is not plainly one: FastAPI then finds out why, in the same body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return document.model_validate(json.loads(await request.body()))
        if document is InferenceRequest and student.task == "image_classification" and _is_image(kind):
            return document(inputs=await request.body())
    except (ValueError, RecursionError, ClientDisconnect):  # pydantic's errors are values' errors too
        pass
    return None  # or one that FastAPI takes as well, such as application/vnd.api+json


def _is_image(kind: str) -> bool:
    """Whether Hugging Face's client sends an image as it is under this content type; of bytes it knows none."""
    return kind.startswith("image/") or kind in ("", "application/octet-stream")
