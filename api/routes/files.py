"""A model's bytes: single files, and the whole as ``.tar.gz``."""

from __future__ import annotations

from collections.abc import Iterator
from mimetypes import guess_type
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from api import pages
from api.deps import House, Services
from api.downloads import Format, read_file
from api.openapi import Responses, answers
from api.transfer import Content, send
from models.model import ModelFile
from models.repository import catalogue

router = APIRouter(prefix="/v1/models/{model_id}", tags=["models"], dependencies=pages.STRICT)

#: How long a signed URL may be used; a download that has begun goes on.
_SIGNED_SECONDS = 600

_BYTES = {"schema": {"type": "string", "format": "binary"}}


def _transfer(media_type: str, *more: tuple[int, str]) -> Responses:
    found: Responses = {
        200: {"description": "The whole.", "content": {media_type: _BYTES}},
        206: {"description": "The range that was asked for.", "content": {media_type: _BYTES}},
        304: {"description": "It has not changed."},
    }
    return found | {status: {"description": text} for status, text in more} | answers(404, 416, 503)


@router.get(
    "/files/{path:path}",
    summary="Download one file",
    response_class=Response,
    responses=_transfer("application/octet-stream", (307, "To a signed URL of the bucket that holds the file.")),
)
def download_file(request: Request, house: House, model_id: str, path: str) -> Response:
    """Takes `Range`, `If-Range` and `If-None-Match`; the `ETag` is the file's sha256.

    Where the files are in a bucket, the answer is a redirect to a signed URL, unless `LIMBECK_S3_REDIRECT` is off, or
    `If-Range` came: the bucket does not know our ETag.
    """
    file = _file(house, model_id, path)
    content = _content(house, file)
    conditional = "if-range" in request.headers or "if-none-match" in request.headers
    if request.method == "GET" and house.settings.s3_redirect and not conditional:
        url = house.storage.signed_url(file.key, _SIGNED_SECONDS)
        if url is not None:
            return RedirectResponse(url, 307, headers={"Cache-Control": "no-store"})
    return send(request, content)


@router.get(
    "/download",
    summary="Download a model",
    response_class=Response,
    responses=_transfer("application/gzip"),
)
def download_model(
    request: Request,
    house: House,
    model_id: str,
    format: Annotated[Format, Query(description="Which weights to pack.")] = "safetensors",
) -> Response:
    """A `.tar.gz` with one folder, named like the model. The first time takes as long as the packing does.

    Every format has `config.json`, the tokenizer, `limbeck.json` and the model card. `safetensors` adds
    `model.safetensors` (load it with plain transformers), `onnx` adds `onnx/model.onnx`, and the other forms add their
    file of that folder (`onnx/model_int8.onnx`, …). The bytes are the same every time: `ETag` is their sha256, and with
    `Range` and `If-Range` a download that broke off goes on.
    """
    with house.database.reading() as session:
        model = catalogue.get_model(session, model_id)
        files = catalogue.model_files(session, model_id)
    archive = house.downloads.archive(model, files, format)

    def read(start: int, end: int) -> Iterator[bytes]:
        try:
            return read_file(archive.path, start, end)
        except FileNotFoundError:  # removed since: packed again it has the same bytes
            return read_file(house.downloads.archive(model, files, format).path, start, end)

    name = f"{model.id}-{format}.tar.gz"
    return send(request, Content(archive.bytes, archive.sha256, name, "application/gzip", read))


router.head("/files/{path:path}", include_in_schema=False)(download_file)
router.head("/download", include_in_schema=False)(download_model)


def _file(house: Services, model_id: str, path: str) -> ModelFile:
    with house.database.reading() as session:
        return catalogue.model_file(session, model_id, path)


def _content(house: Services, file: ModelFile) -> Content:
    kind = guess_type(file.path)[0] or "application/octet-stream"
    name = file.path.rsplit("/", 1)[-1]
    return Content(file.bytes, file.sha256, name, kind, lambda start, end: house.storage.open(file.key, start, end))
