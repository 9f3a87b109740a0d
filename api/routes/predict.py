"""Asking a student."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.responses import Response

from api import examples
from api.answering import Asked
from api.openapi import answers
from api.schemas import PredictRequest
from limbeck.runtime.inputs import TopK

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post(
    "/{model_id}/predict",
    summary="Ask a student",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.PREDICTION)),
)
async def predict(
    asked: Asked, model_id: str, question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)]
) -> Response:
    """Answers in the shapes of Hugging Face's pipelines: labels and their probabilities (text-classification, also of
    several labels and of numbers), entities (token-classification), answers to questions (question-answering), or
    masked tokens (fill-mask).

    409 when the model has no ONNX export: a job makes one unless its `export` leaves `onnx` out. 429 when too many
    texts wait already, 503 when this one waited too long; `Retry-After` says when to come back.
    """
    student = await asked.student(model_id)
    checked = student.question(question.inputs, top_k=question.parameters.top_k, speed=question.parameters.speed)
    return _json(await asked.batcher.ask(student, checked))


@router.post(
    "/{model_id}/inference",
    summary="Ask a student as the Hugging Face Inference API is asked",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.HF_PREDICTION)),
)
async def inference(
    asked: Asked, model_id: str, question: Annotated[PredictRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)]
) -> Response:
    """For `huggingface_hub.InferenceClient(model=<this address>)`: a list of labels, best first, for each text.

    A single text is answered as a list of one; without `top_k` every label is in it.
    """
    student = await asked.student(model_id)
    inputs = question.inputs if isinstance(question.inputs, list) else [question.inputs]
    top_k: TopK = question.parameters.top_k or "all"
    if student.task == "masked_lm":
        # Its client reads what the pipeline gives, and has no way to name every token.
        inputs, top_k = question.inputs, question.parameters.top_k
    checked = student.question(inputs, top_k=top_k, speed=question.parameters.speed)
    return _json(await asked.batcher.ask(student, checked))


def _json(answer: Any) -> Response:
    # The answer is plain JSON already; FastAPI's own encoder would walk through it once more.
    return Response(json.dumps(answer, ensure_ascii=False).encode(), media_type="application/json")
