"""Asking a student."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from api import examples
from api.answering import Asked
from api.asking import QuestionRoute, Student, Until
from api.openapi import answers
from api.schemas import InferenceRequest, PredictRequest
from limbeck.runtime.inputs import is_comparison

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=QuestionRoute)

#: Tasks whose students answer with labels of texts.
_LABELLED = ("sequence_classification", "multi_label", "regression")


@router.post(
    "/{model_id}/predict",
    summary="Ask a student",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.PREDICTION)),
)
async def predict(
    request: Request,
    asked: Asked,
    student: Student,
    until: Until,
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
    top_k, speed = parameters.top_k, parameters.speed
    answer = await asked.answer(request.receive, student, question.inputs, top_k=top_k, speed=speed, until=until)
    return _json(answer)


@router.post(
    "/{model_id}/inference",
    summary="Ask a student as the Hugging Face Inference API is asked",
    response_model=None,
    responses=answers(404, 409, 422, 429, 503, ok=(None, examples.HF_PREDICTION)),
    openapi_extra={"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def inference(
    request: Request,
    asked: Asked,
    student: Student,
    until: Until,
    question: Annotated[InferenceRequest, Body(openapi_examples=examples.PREDICT_REQUESTS)],
) -> Response:
    """For `huggingface_hub.InferenceClient(model=<this address>)`: its `text_classification`, `token_classification`,
    `question_answering`, `fill_mask`, `feature_extraction`, `sentence_similarity` and `image_classification`.

    Labels of texts are a list, best first, for each text, every label without `top_k`; a single text is answered as a
    list of one, and so is its vector. Everything else comes in the shapes of `/predict`. An image may be the body.
    """
    inputs, top_k = question.inputs, question.parameters.top_k
    if student.task in (*_LABELLED, "embeddings") and not isinstance(inputs, list) and not is_comparison(inputs):
        inputs = [inputs]
    if student.task in _LABELLED:
        top_k = top_k or "all"
    elif student.task == "question_answering" and top_k == 1:
        top_k = None  # one answer is no list
    speed = question.parameters.speed
    return _json(await asked.answer(request.receive, student, inputs, top_k=top_k, speed=speed, until=until))


def _json(answer: Any) -> Response:
    # The answer is plain JSON already; FastAPI's own encoder would walk through it once more. NaN would be none.
    content = json.dumps(answer, ensure_ascii=False, allow_nan=False)
    return Response(content.encode(), media_type="application/json")
