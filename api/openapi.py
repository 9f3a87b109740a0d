"""The OpenAPI document, and a page for it that needs no internet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from api import examples
from api.errors import PROBLEM_JSON
from api.schemas import ProblemView

Responses = dict[int | str, dict[str, Any]]

#: FastAPI drops every null from its document; examples pass through it as text, so that they keep theirs.
_AS_JSON = "x-example-as-json"

DESCRIPTION = """\
Limbeck distils BERT-family models: give it a teacher, a data set and a method, watch the job, and get a small student
with a scorecard beside its teacher.

Errors are `application/problem+json` (RFC 9457): `code` is for programs, `detail` for people, and `errors` names each
field by its JSON pointer. Every answer carries `X-Request-Id`; send your own to find it in the server's log.
"""

TAGS = [
    {"name": "jobs", "description": "Submit a distillation and follow it to its end."},
    {"name": "data sets", "description": "Upload what is learned from."},
    {"name": "models", "description": "Teachers that you upload, students that jobs make."},
    {"name": "open inference", "description": "Open Inference Protocol v2, for clients that speak it already."},
    {"name": "forms", "description": "JSON Schemas of methods and tasks, for forms and checks."},
    {"name": "service", "description": "Health and metrics."},
]

_PROBLEMS = {
    404: "There is no such thing.",
    409: "Its state does not allow it; the answer names the state.",
    412: "It has changed since you looked.",
    413: "The upload is larger than the server takes.",
    416: "The range begins behind the end.",
    422: "The input is not valid; the answer names each field.",
    429: "Too much waits already, jobs or texts; Retry-After says when to come back.",
    503: "The database or the storage is away, or there was no answer in time; Retry-After says when to come back.",
    507: "The server's disk is full.",
}


def answers(
    *problems: int, media_type: str = PROBLEM_JSON, **successes: tuple[type[BaseModel] | None, Any]
) -> Responses:
    """The ``responses`` of a route.

    Args:
        problems: error statuses that it may answer with.
        media_type: of these answers.
        successes: ``ok=(JobView, example)``; ``ok`` is 200, ``created`` 201, ``accepted`` 202.
    """
    codes = {"ok": 200, "created": 201, "accepted": 202}
    found: Responses = {}
    for name, (model, example) in successes.items():
        found[codes[name]] = {"content": {"application/json": {"example": {_AS_JSON: json.dumps(example)}}}}
        if model is not None:
            found[codes[name]]["model"] = model
    for status in problems:
        content = {
            media_type: {
                "schema": _reference(ProblemView),
                "example": {_AS_JSON: json.dumps(examples.problem(status))},
            }
        }
        found[status] = {"description": _PROBLEMS[status], "content": content}
    return found


def multipart(required: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The description of a form that a route reads from the stream itself."""
    schema = {"type": "object", "required": [required], "properties": parts}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def file_part(description: str) -> dict[str, Any]:
    return {"type": "string", "format": "binary", "description": description}


def text_part(description: str, example: str) -> dict[str, Any]:
    return {"type": "string", "description": description, "example": example}


def install(app: FastAPI) -> None:
    """Serve ``/docs`` with the Swagger UI that is installed here, and complete the document's components."""
    static = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/docs/static", StaticFiles(directory=static), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/static/favicon.png",
            swagger_ui_parameters={"docExpansion": "list", "defaultModelsExpandDepth": 0, "tryItOutEnabled": True},
        )

    generate = app.openapi

    def completed() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schema = ProblemView.model_json_schema(ref_template="#/components/schemas/{model}")
            _replace_default_problems(document)
            document = _with_examples(document)
            document["components"]["schemas"] |= schema.pop("$defs") | {ProblemView.__name__: schema}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = completed  # type: ignore[method-assign]


def _replace_default_problems(document: dict[str, Any]) -> None:
    """FastAPI describes its own answer to parameters that are not valid; ours is a problem like all others."""
    for verbs in document["paths"].values():
        for operation in verbs.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = answers(422)[422]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _with_examples(document: Any) -> Any:
    if isinstance(document, list):
        return [_with_examples(one) for one in document]
    if not isinstance(document, dict):
        return document
    if document.keys() == {_AS_JSON}:
        return json.loads(document[_AS_JSON])
    return {key: _with_examples(value) for key, value in document.items()}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def installed_version() -> str:
    """Limbeck's."""
    try:
        return version("limbeck")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def members(union: Any) -> list[type[BaseModel]]:
    """The classes of a (nested, annotated) union, in their order."""
    if isinstance(union, type) and issubclass(union, BaseModel):
        return [union]
    return [one for part in get_args(union) for one in members(part)]
