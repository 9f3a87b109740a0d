"""Asking a student."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from api import examples
from api.deps import House
from api.openapi import answers
from api.schemas import PredictRequest
from models.repository import catalogue

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post(
    "/{model_id}/predict",
    summary="Ask a student",
    response_model=None,
    responses=answers(404, 409, 422, 503, ok=(None, examples.PREDICTION)),
)
def predict(
    house: House, model_id: str, question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)]
) -> Any:
    """Answers in the shapes of Hugging Face's pipelines: labels and their probabilities (text-classification, also of
    several labels and of numbers), entities (token-classification), or answers to questions (question-answering).

    409 when the model has no ONNX export: a job makes one unless its `export` leaves `onnx` out.
    """
    with house.database.reading() as session:
        files = catalogue.model_files(session, model_id)
    student = house.students.get(model_id, files)
    return student.predict(question.inputs, top_k=question.parameters.top_k)
