"""From errors to HTTP: the one place where a status is chosen. Every error answer is an RFC 9457 problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from limbeck import errors
from limbeck.errors import LimbeckError, Problem
from limbeck.findings import json_pointer, problems_in

PROBLEM_JSON = "application/problem+json"
#: Below which path errors are those of the Open Inference Protocol.
OPEN_INFERENCE = "/v2/"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a class of errors leaves the house."""

    status: int
    title: str
    retry_after: int | None = None  #: seconds


#: The nearest class of an error's line of descent decides.
ANSWERS: Mapping[type[LimbeckError], Answer] = {
    LimbeckError: Answer(500, "The server failed"),
    errors.InvalidInput: Answer(422, "The input is not valid"),
    errors.NotFound: Answer(404, "Not found"),
    errors.NotYet: Answer(404, "Not there yet"),
    errors.Conflict: Answer(409, "The state does not allow it"),
    errors.Stale: Answer(412, "It has changed"),
    errors.TooLarge: Answer(413, "Too large"),
    errors.Unavailable: Answer(503, "A service is away", retry_after=5),
    errors.QueueFull: Answer(429, "The queue is full", retry_after=30),
    errors.Busy: Answer(429, "Too much waits", retry_after=1),
    errors.TooSlow: Answer(503, "No answer in time", retry_after=1),
    errors.StorageFull: Answer(507, "The storage is full"),
}

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_CODES = {
    400: "bad_request",
    404: "no_such_route",
    405: "method_not_allowed",
    413: errors.TooLarge.code,
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}


def answer_for(error: LimbeckError) -> Answer:
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def problem(
    request: Request,
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    problems: Iterable[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An ``application/problem+json`` answer; by the Open Inference Protocol the same as ``application/json``."""
    body: dict[str, Any] = {
        "type": f"urn:limbeck:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        "request_id": request.scope.get("request_id"),
        "errors": list(problems),
    }
    media_type = PROBLEM_JSON
    if request.url.path.startswith(OPEN_INFERENCE):
        body["error"] = detail  # where its clients look, KServe's in JSON of this name alone
        media_type = "application/json"
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(content, status_code=status, media_type=media_type, headers=dict(headers or {}))


def not_json() -> HTTPException:
    """For a body whose Content-Type is not JSON."""
    return HTTPException(415, "Send the body as JSON, with the header 'Content-Type: application/json'.")


def refusal(scope: Scope, headers: Headers) -> Response | None:
    """The answer to what no route takes: U+0000 in an address, which no database has, or a body that is packed."""
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        detail = f"Send the body as it is: found 'Content-Encoding: {encoding}'."
        return problem(
            Request(scope),
            status=415,
            code=_CODES[415],
            title=HTTPStatus(415).phrase,
            detail=detail,
            headers={"Accept-Encoding": "identity"},
        )
    if "\0" in scope["path"]:
        detail = "Nothing has the character U+0000 in its name."
        title = ANSWERS[errors.NotFound].title
        return problem(Request(scope), status=404, code=errors.NotFound.code, title=title, detail=detail)
    return _nul_in_query(Request(scope)) if b"%00" in scope["query_string"] else None


def _nul_in_query(request: Request) -> Response:
    found = [name for name, value in request.query_params.multi_items() if "\0" in name + value]
    detail = "found the character U+0000, which no text here has"
    listed = [{"pointer": json_pointer([name]), "in": "query", "detail": detail} for name in found]
    return _invalid(request, listed)


def _invalid(request: Request, listed: list[dict[str, Any]]) -> Response:
    return problem(
        request,
        status=422,
        code=errors.InvalidInput.code,
        title=ANSWERS[errors.InvalidInput].title,
        detail=_summary(listed),
        problems=listed,
    )


def unexpected(request: Request) -> Response:
    """What a caller may know of an error that nobody expected: where to look in the log."""
    return problem(
        request,
        status=500,
        code=LimbeckError.code,
        title=ANSWERS[LimbeckError].title,
        detail="An unexpected error happened. The server's log has it under this request_id.",
    )


def register(app: FastAPI) -> None:
    """Make ``app`` answer every error that it raises or meets with a problem."""
    app.add_exception_handler(LimbeckError, _limbeck_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _broken_off)


async def _limbeck_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LimbeckError)
    answer = answer_for(error)
    wait = getattr(error, "retry_after", answer.retry_after)
    if answer.status == 500:
        raise error  # not meant for a caller: the outermost layer logs it whole
    return problem(
        request,
        status=answer.status,
        code=error.code,
        title=answer.title,
        detail=error.message,
        problems=_listed(error.problems),
        headers={"Retry-After": str(wait)} if wait else None,
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else _explained(request, error.status_code, title)
    code = _CODES.get(error.status_code, title.lower().replace(" ", "_"))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return problem(request, status=error.status_code, code=code, title=title, detail=detail, headers=headers)


async def _broken_off(request: Request, error: Exception) -> Response:
    """Nobody reads it; it is counted as what it is, and not as a failure of this server."""
    return await _http_exception(request, HTTPException(400, "The request broke off before its end."))


def _allowed(request: Request) -> list[str]:
    """The methods of all routes with this path; Starlette names those of the first one."""
    routes = request.app.router.routes
    scopes = {method: dict(request.scope, method=method) for method in _METHODS}
    return [method for method in _METHODS if any(route.matches(scopes[method])[0] is Match.FULL for route in routes)]


def _explained(request: Request, status: int, phrase: str) -> str:
    if status == 404:
        return f"There is no route {request.url.path}. /docs lists all of them."
    if status == 405:
        return f"{request.url.path} does not take {request.method}."
    return phrase


async def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found and found[0]["type"] == "json_invalid":
        return _malformed_json(request, str(error.body), int(found[0]["loc"][1]), found[0]["ctx"]["error"])
    if isinstance(error.body, bytes):
        return await _http_exception(request, not_json())
    model = _body_model(request)
    outside = [one for item in found if item["loc"][0] != "body" for one in _outside_the_body(item)]
    # Together: what stands for one of several kinds is told of each of them.
    inside = [item | {"loc": tuple(item["loc"][1:])} for item in found if item["loc"][0] == "body"]
    if any(not item["loc"] and item["type"] == "missing" for item in inside):
        return _invalid(request, [*outside, {"pointer": "", "detail": "this request needs a body"}])
    return _invalid(request, [*outside, *_listed(problems_in(inside, error.body, model))])


def _malformed_json(request: Request, text: str, position: int, reason: str) -> Response:
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    detail = f"The body is not JSON: line {line}, column {column}: {reason}."
    return problem(
        request,
        status=400,
        code="malformed_json",
        title="Malformed JSON",
        detail=detail,
        problems=[{"pointer": "", "detail": detail}],
    )


def _body_model(request: Request) -> type[BaseModel] | None:
    """What the route reads its body into, where that has fields."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = None if field is None else field.field_info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _outside_the_body(item: Any) -> list[dict[str, str]]:
    """One of FastAPI's findings, with the part of the request that it is in."""
    where, *path = item["loc"]
    given = {path[0]: item.get("input")} if path else {}
    detail = problems_in([item | {"loc": tuple(path)}], given)[0].detail
    return [{"pointer": json_pointer(path[:1]), "in": str(where), "detail": detail}]


def _listed(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"pointer": one.pointer, "detail": one.detail} for one in problems]


def _summary(listed: list[dict[str, str]]) -> str:
    lines = [f"{one.get('in', '')} {one['pointer'] or '/'}: {one['detail']}".strip() for one in listed]
    return "The request is not valid: " + "; ".join(lines)
