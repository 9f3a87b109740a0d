"""Asking a student."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api import examples
from api.deps import House, Services
from api.openapi import answers
from api.schemas import PredictRequest
from limbeck.runtime import Predictor
from models.repository import catalogue

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post(
    "/{model_id}/predict",
    summary="Ask a student",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.PREDICTION)),
)
async def predict(
    house: House, model_id: str, question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)]
) -> Response:
    """Labels and their probabilities, in the shapes of Hugging Face's text-classification pipeline.

    409 when the model has no ONNX export: a job makes one unless its `export` leaves `onnx` out. 429 when too many
    texts wait already, 503 when this one waited too long; `Retry-After` says when to come back.
    """
    student = await find_student(house, model_id)
    asked = student.question(question.inputs, top_k=question.parameters.top_k)
    answer = await house.batcher.ask(student, asked)
    # The answer is plain JSON already; FastAPI's own encoder would walk through it once more.
    return Response(json.dumps(answer, ensure_ascii=False).encode(), media_type="application/json")


async def find_student(house: Services, model_id: str) -> Predictor:
    """The student, loaded where it is not yet.

    Raises:
        NotFound, Conflict: there is no such model, or it has no exported form.
    """
    student = house.students.at_hand(model_id)
    return student if student is not None else await run_in_threadpool(_load, house, model_id)


def _load(house: Services, model_id: str) -> Predictor:
    with house.database.reading() as session:
        files = catalogue.model_files(session, model_id)
    return house.students.get(model_id, files)
