"""Asking a student."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import Response

from api import examples
from api.answering import Asked
from api.asking import QuestionRoute, Student
from api.openapi import answers
from api.schemas import PredictRequest

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=QuestionRoute)


@router.post(
    "/{model_id}/predict",
    summary="Ask a student",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.PREDICTION)),
)
async def predict(
    asked: Asked,
    student: Student,
    question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)],
) -> Response:
    """Answers in the shapes of Hugging Face's pipelines: labels and their probabilities (text-classification, also of
    several labels and of numbers), entities (token-classification), answers to questions (question-answering), or
    masked tokens (fill-mask). Of `{"tokens": […]}` an entity's `start` and `end` are characters of the tokens with a
    blank between them. A student of images is sent base64 of a PNG, JPEG, WebP, BMP or GIF of at most 10 MiB and 25
    million pixels, or a list of at most 64, and answers as image-classification: the best five labels, or `top_k`.

    409 when the model has no ONNX export: a job makes one unless its `export` leaves `onnx` out. 429 when too many
    texts wait already, 503 when this one waited too long; `Retry-After` says when to come back.
    """
    parameters = question.parameters
    checked = await asked.read(student, question.inputs, top_k=parameters.top_k, speed=parameters.speed)
    return _json(await asked.batcher.ask(student, checked))


@router.post(
    "/{model_id}/inference",
    summary="Ask a student as the Hugging Face Inference API is asked",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.HF_PREDICTION)),
)
async def inference(
    asked: Asked,
    student: Student,
    question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)],
) -> Response:
    """For `huggingface_hub.InferenceClient(model=<this address>)`: a list of labels, best first, for each text.

    A single text is answered as a list of one; without `top_k` every label is in it.
    """
    inputs, top_k = question.inputs, question.parameters.top_k
    if student.task not in ("image_classification", "masked_lm"):  # whose clients read what the pipelines give
        inputs, top_k = (inputs if isinstance(inputs, list) else [inputs]), top_k or "all"
    checked = await asked.read(student, inputs, top_k=top_k, speed=question.parameters.speed)
    return _json(await asked.batcher.ask(student, checked))


def _json(answer: Any) -> Response:
    # The answer is plain JSON already; FastAPI's own encoder would walk through it once more.
    return Response(json.dumps(answer, ensure_ascii=False).encode(), media_type="application/json")
