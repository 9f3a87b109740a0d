"""The Open Inference Protocol, version 2, for clients that already speak it: KServe's, Triton's.

A student has one input tensor, ``text`` (BYTES, one text each; beside it ``text_pair`` where it reads pairs), and its
outputs are ``label`` (BYTES) and ``score`` (FP32), the best of each text. One that tags tokens or finds masked ones has
the output ``answer``, JSON for each text; so has one that answers questions, whose inputs are ``question`` and
``context``, and one of several labels beside its best one: all of them with their scores. One that gives vectors has
the output ``embedding`` (FP32, a row for each text). A student of images has the input ``image``, each in base64.
Tensors come and go as JSON or in the binary form of Triton's extension, the outputs as each is asked for
(``binary_data``, ``binary_data_output``). What stands under an id or an alias has one version, ``1``. Of a request's
``parameters`` ``speed`` is read, too; those that clients send of themselves are passed by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from api import examples
from api.answering import Answering, Asked
from api.asking import DirectRoute, limit_body
from api.binary_tensors import JSON_LENGTH, response, unpacked
from api.openapi import answers as answers_of
from api.readiness import Ready
from limbeck.errors import InvalidInput, NotFound, Problem
from limbeck.runtime import Predictor
from limbeck.runtime.inputs import TopK

router = APIRouter(prefix="/v2", tags=["open inference"])
answers = partial(answers_of, media_type="application/json")
asking = APIRouter(prefix="/v2", tags=["open inference"], route_class=DirectRoute)

_DIGITS = 18  # of a length, at most
#: Of every model: an id's weights never change, and those of an alias are changed as a whole.
_VERSION = "1"
#: Read by hand, as binary tensors stand behind it in the same body.
_REQUEST: dict[str, Any] = {
    "schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array"}}},
    "examples": {"one": {"summary": "One text", "value": examples.INFER}},
}
_OUTPUTS = (("label", "BYTES"), ("score", "FP32"))
_ANSWER = ("answer", "BYTES")
#: How many labels a student of these tasks is asked for, which comes as a list: of images it would be five.
_TOP_K: Mapping[str, TopK] = {"image_classification": 1, "multi_label": "all"}
#: Whether an output is to be binary; and of a request, whether those are that do not say so themselves.
_BINARY, _ALL_BINARY = "binary_data", "binary_data_output"
#: Parameters of a request. All but the first two are passed by: Triton's client and MLServer's send them of
#: themselves or offer them as arguments, for sequences, queues and codecs, which are not here.
_PARAMETERS = (
    *("speed", _ALL_BINARY, "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"),
    *("triton_enable_empty_final_response", "content_type", "headers"),
)
#: The same of an output's: it comes with all that it has, not with the best few classes, nor in shared memory.
_PARAMETERS_OF_OUTPUTS = (_BINARY, "content_type")


@router.get("", summary="What the server is", responses=answers(ok=(None, examples.SERVER)))
async def inference_server(request: Request) -> dict[str, Any]:
    """Name, version, and the extensions that it has."""
    return {"name": "limbeck", "version": request.app.version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", summary="Whether the process lives", responses=answers(ok=(None, {"live": True})))
async def inference_live() -> dict[str, bool]:
    """Asks nothing of anybody."""
    return {"live": True}


@router.get("/health/ready", summary="Whether models can be asked", responses=answers(503, ok=(None, {"ready": True})))
def inference_ready(readiness: Ready) -> Response:
    """As `/readyz`."""
    status = readiness.answer().status_code
    return response({"ready": status == 200}, status=status)


@router.get(
    "/models/{name}", summary="A model's tensors", responses=answers(404, 409, 503, ok=(None, examples.TENSORS))
)
async def model_metadata(asked: Asked, name: str) -> Response:
    """`name` is a student's id or an alias. 503 while it is not loaded in time."""
    return _metadata(name, await asked.student(name, asked.deadline()))


@router.get(
    "/models/{name}/versions/{version}",
    summary="A version's tensors",
    responses=answers(404, 409, 503, ok=(None, examples.TENSORS)),
)
async def version_metadata(asked: Asked, name: str, version: str) -> Response:
    """As without the version. Every model has one, `1`; any other is refused with 404."""
    student = await asked.student(name, asked.deadline())
    _require_version(name, version)
    return _metadata(name, student)


def _metadata(name: str, student: Predictor) -> Response:
    inputs = [{"name": one, "datatype": "BYTES", "shape": [-1]} for one in _inputs(student)]
    shape = [-1, -1] if student.task == "embeddings" else [-1]
    outputs = [{"name": one, "datatype": kind, "shape": shape} for one, kind in _outputs(student)]
    versions = [_VERSION]
    return response(
        {"name": name, "versions": versions, "platform": student.format, "inputs": inputs, "outputs": outputs}
    )


@router.get(
    "/models/{name}/ready",
    summary="Whether a model can be asked",
    responses=answers(404, 409, 503, ok=(None, {"name": "reviews", "ready": True})),
)
async def model_ready(asked: Asked, name: str) -> Response:
    """Loads it where it is not yet; 503 while it is not loaded in time."""
    await asked.student(name, asked.deadline())
    return response({"name": name, "ready": True})


@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Whether a version can be asked",
    responses=answers(404, 409, 503, ok=(None, {"name": "reviews", "ready": True})),
)
async def version_ready(asked: Asked, name: str, version: str) -> Response:
    """As without the version; there is `1`."""
    answer = await model_ready(asked, name)
    _require_version(name, version)
    return answer


_INFER: dict[str, Any] = {
    "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": _REQUEST}}},
    "responses": answers(404, 409, 422, 429, 503, ok=(None, examples.INFERRED)),
}


@asking.post("/models/{name}/infer", summary="Ask a model", **_INFER)
async def infer(asked: Asked, name: str, request: Request) -> Response:
    """The best label of each text, and its probability; or what else the student answers with. A student with early
    exits takes `"parameters": {"speed": 0.5}`. With `"binary_data_output": true` there, or `"binary_data": true` among
    an output's `parameters`, outputs come in the binary form of Triton's extension, as `application/octet-stream`. What
    Triton's and MLServer's clients send of themselves beside it (`sequence_id`, `priority`, `timeout`, `content_type`,
    …) has no effect; any other parameter is refused.
    """
    return await _infer(asked, name, request)


@asking.post("/models/{name}/versions/{version}/infer", summary="Ask a version of a model", **_INFER)
async def infer_version(asked: Asked, name: str, version: str, request: Request) -> Response:
    """As without the version. Every model has one, `1`; any other is refused with 404."""
    return await _infer(asked, name, request, version)


async def _infer(asked: Answering, name: str, request: Request, version: str = _VERSION) -> Response:
    until = asked.deadline()
    student = await asked.student(name, until)
    _require_version(name, version)
    limit_body(request, student)
    began = time.monotonic()
    body = await request.body()
    until += time.monotonic() - began  # how long the body takes to come is its sender's affair
    document, columns = _read(body, request.headers.get(JSON_LENGTH), _inputs(student))
    parameters = _known(document.get("parameters"), "/parameters", _PARAMETERS, "; allowed: speed")
    wanted = _wanted(document, _outputs(student), _flag(parameters, _ALL_BINARY, "/parameters") or False)
    top_k, speed = _TOP_K.get(student.task), parameters.get("speed")
    answer = await asked.answer(request.receive, student, _asked(columns), top_k=top_k, speed=speed, until=until)
    binary = [one for one, is_binary in wanted.items() if is_binary]
    return response(_head(document, name) | {"outputs": _tensors(student, answer, wanted)}, binary)


def _tensors(student: Predictor, answer: list[Any], wanted: Collection[str]) -> list[dict[str, Any]]:
    """The outputs of :func:`_outputs` that are wanted."""
    if student.task == "embeddings":
        numbers = [number for vector in answer for number in vector]
        shape = [len(answer), len(answer[0])]
        return [{"name": "embedding", "datatype": "FP32", "shape": shape, "data": numbers}]
    data: dict[str, list[Any]] = {"answer": [json.dumps(one) for one in answer]}
    if _labels(student):
        best = [one[0] if student.task in _TOP_K else one for one in answer]
        data |= {name: [one[name] for one in best] for name, _ in _OUTPUTS}
    return [
        {"name": one, "datatype": kind, "shape": [len(answer)], "data": data[one]}
        for one, kind in _outputs(student)
        if one in wanted
    ]


def _head(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    return ({"id": document["id"]} if "id" in document else {}) | {"model_name": name, "model_version": _VERSION}


def _require_version(name: str, version: str) -> None:
    if version != _VERSION:
        raise NotFound(
            f"The model {name!r} has no version {version!r}; it has {_VERSION!r}. Other students have other ids."
        )


def _labels(student: Predictor) -> bool:
    """Whether it answers with a label and a score; else the answer is JSON."""
    return student.task not in ("token_classification", "question_answering", "embeddings", "masked_lm")


def _inputs(student: Predictor) -> tuple[str, ...]:
    if student.task == "question_answering":
        return ("question", "context")
    if student.task == "image_classification":
        return ("image",)
    return ("text", "text_pair") if student.pair else ("text",)


def _outputs(student: Predictor) -> tuple[tuple[str, str], ...]:
    if student.task == "embeddings":
        return (("embedding", "FP32"),)
    if student.task == "multi_label":
        return (*_OUTPUTS, _ANSWER)
    return _OUTPUTS if _labels(student) else (_ANSWER,)


def _asked(columns: Mapping[str, list[str]]) -> list[Any]:
    if len(columns) == 1:
        return list(*columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read(body: bytes, json_length: str | None, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The request's document, and the texts of each input.

    Raises:
        InvalidInput: with a pointer for what is wrong.
    """
    length = len(body)
    if json_length is not None:
        if not json_length.isdecimal() or len(json_length) > _DIGITS or int(json_length) > length:
            raise _fault(f"/{JSON_LENGTH}", f"found {json_length[:80]!r}; the body has {length} bytes")
        length = int(json_length)
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise _fault("", f"the body is not JSON: {error}") from error
    _require_id(document)
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise _fault("/inputs", f"expected a list of tensors; this model has {', '.join(names)}")
    binary = memoryview(body)[length:]
    columns: dict[str, list[str]] = {}
    for place, tensor in enumerate(inputs):
        name = tensor.get("name")
        if name not in names or name in columns:
            raise _fault(f"/inputs/{place}/name", f"found {name!r}; this model has, each once: {', '.join(names)}")
        columns[name], binary = _texts(tensor, binary, f"/inputs/{place}")
    if binary:
        raise _fault("/inputs", f"{len(binary)} bytes stand behind the last of the binary tensors")
    missing = [name for name in names if name not in columns]
    if missing:
        raise _fault("/inputs", f"the tensor {missing[0]!r} is missing")
    sizes = {name: len(found) for name, found in columns.items()}
    if len(set(sizes.values())) > 1:
        raise _fault("/inputs", f"the tensors have to be of one length; found {sizes}")
    return document, columns


def _require_id(document: Any) -> None:
    """It is answered as it came, which half a character cannot be."""
    found = document.get("id") if isinstance(document, dict) else None
    if found is not None and (not isinstance(found, str) or any("\ud800" <= one <= "\udfff" for one in found)):
        raise _fault("/id", f"found {found!r}; expected a text of whole characters")


def _texts(tensor: Mapping[str, Any], binary: memoryview, at: str) -> tuple[list[str], memoryview]:
    """A BYTES tensor's texts, and the binary data behind it."""
    if tensor.get("datatype") != "BYTES":
        raise _fault(f"{at}/datatype", f"found {tensor.get('datatype')!r}; allowed: 'BYTES'")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        found, rest = tensor.get("data"), binary
    elif type(size) is int and 0 <= size <= len(binary):
        try:
            found, rest = unpacked(binary[:size]), binary[size:]
        except ValueError as error:
            raise _fault(f"{at}/data", str(error)) from error
    else:
        raise _fault(f"{at}/parameters/binary_data_size", f"found {size!r}; {len(binary)} bytes are left")
    while isinstance(found, list) and found and all(isinstance(one, list) for one in found):
        found = [value for one in found for value in one]  # nested as the shape is
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise _fault(f"{at}/data", "expected a list of texts, at least one")
    shape = tensor.get("shape")
    numbers = shape if isinstance(shape, list) and all(type(one) is int and one >= 0 for one in shape) else None
    if numbers is None or _product(numbers) != len(found):
        raise _fault(f"{at}/shape", f"found {shape!r}; there are {len(found)} texts")
    return found, rest


def _wanted(document: Mapping[str, Any], known: Sequence[tuple[str, str]], binary: bool) -> dict[str, bool]:
    """The names of the outputs to answer with, by default all, and whether each is to be binary, by default as
    ``binary`` says."""
    names = [name for name, _ in known]
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return dict.fromkeys(names, binary)
    wanted: dict[str, bool] = {}
    if not isinstance(outputs, list):
        raise _fault("/outputs", 'expected a list of objects such as {"name": "' + names[0] + '"}')
    for place, one in enumerate(outputs):
        name = one.get("name") if isinstance(one, dict) else None
        if name not in names:
            raise _fault(f"/outputs/{place}/name", f"found {name!r}; allowed: {', '.join(names)}")
        at = f"/outputs/{place}/parameters"
        own = _flag(_known(one.get("parameters"), at, _PARAMETERS_OF_OUTPUTS), _BINARY, at)
        wanted[one["name"]] = binary if own is None else own
    return wanted


def _known(parameters: Any, at: str, known: Collection[str], allowed: str = "") -> Mapping[str, Any]:
    """The parameters, if all of them are known; their values are not looked at."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _fault(at, "expected an object")
    for name in parameters:
        if name not in known:
            raise _fault(f"{at}/{name}", f"there is no such parameter here{allowed}")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, at: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise _fault(f"{at}/{name}", f"found {found!r}; allowed: true or false")
    return found


def _product(numbers: Sequence[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def _fault(pointer: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{pointer or 'body'}: {detail}", [Problem(pointer, detail)])
