"""Models: upload a teacher, look, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from api import archives, examples, pages, uploads
from api.archives import Limits
from api.deps import House, Services
from api.downloads import formats_of
from api.openapi import answers, file_part, multipart, text_part
from api.schemas import FileView, Listing, ModelSummary, ModelView
from api.uploads import Upload
from limbeck.errors import Unavailable
from limbeck.model_folder import ModelFacts, check_model_folder
from models.base import new_id
from models.model import Model, ModelKind
from models.repository import catalogue, jobs
from models.repository.catalogue import StoredFile

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=pages.STRICT)

_FORM = multipart(
    "file",
    {
        "file": file_part("A Hugging Face folder as .zip or .tar.gz, with its weights as safetensors."),
        "name": text_part("For people; default: the name of the file.", "bert-base, our reviews"),
    },
)


@router.post(
    "",
    status_code=201,
    summary="Upload a teacher",
    response_model=ModelView,
    openapi_extra=_FORM,
    responses=answers(413, 422, 503, 507, created=(ModelView, examples.TEACHER)),
)
async def upload_model(request: Request, house: House) -> Response:
    """A job names it as its teacher: `model:{id}`. Pickled weights are refused, because reading them runs code."""
    limit = house.settings.max_upload_bytes
    async with uploads.receive(request, house.scratch, files=("file",), fields=("name",), limit=limit) as received:
        view = await to_thread.run_sync(_take_in, house, received, limiter=house.intake)
    headers = {"Location": f"/v1/models/{view.id}"}
    return Response(view.model_dump_json(), 201, headers, media_type="application/json")


@router.get(
    "",
    summary="List models, newest first",
    responses=answers(422, 503, ok=(Listing[ModelSummary], examples.listing(examples.MODEL_SUMMARY))),
)
def list_models(
    house: House,
    kind: Annotated[
        ModelKind | None, Query(description="Only uploaded teachers, only students, only baselines.")
    ] = None,
    job_id: Annotated[str | None, Query(description="Only what this job made.", max_length=64)] = None,
    limit: pages.Limit = 20,
    cursor: pages.Cursor = None,
) -> Listing[ModelSummary]:
    with house.database.reading() as session:
        page = catalogue.list_models(session, limit=limit, cursor=cursor, kind=kind, job_id=job_id)
        return pages.listing(page, ModelSummary.of)


@router.get("/{model_id}", summary="Look at a model", responses=answers(404, 503, ok=(ModelView, examples.MODEL)))
def get_model(house: House, model_id: str) -> ModelView:
    """Lineage, files, and the scorecard of the job that made it."""
    with house.database.reading() as session:
        model = catalogue.get_model(session, model_id)
        files = [FileView.of(file) for file in catalogue.model_files(session, model_id)]
        scorecard = None
        if model.job_id is not None:
            scorecard = jobs.get(session, model.job_id).scorecard
    return _view(model, files, scorecard)


@router.get(
    "/{model_id}/files",
    summary="List a model's files",
    responses=answers(404, 503, ok=(Listing[FileView], examples.listing(examples.FILE))),
)
def list_files(house: House, model_id: str) -> Listing[FileView]:
    """All of them, with their sha256."""
    with house.database.reading() as session:
        return Listing[FileView](data=[FileView.of(file) for file in catalogue.model_files(session, model_id)])


@router.delete("/{model_id}", status_code=204, summary="Delete a model", responses=answers(404, 409, 503))
def delete_model(house: House, model_id: str) -> None:
    """409 while a job that has not ended names it, and while an alias means it."""
    with house.database.session() as session:
        keys = catalogue.delete_model(session, model_id)
    house.discard(keys)
    house.forget_model(model_id)


def _view(model: Model, files: list[FileView], scorecard: dict[str, object] | None) -> ModelView:
    summary = ModelSummary.of(model).model_dump()
    formats = formats_of([file.path for file in files])
    return ModelView.model_validate(summary | {"files": files, "formats": formats, "scorecard": scorecard})


def _take_in(house: Services, received: Upload) -> ModelView:
    """Unpack, check, store and record what came; nothing stays where one of these fails."""
    name = uploads.name_of(received, "file")
    folder = received.folder / "unpacked"
    folder.mkdir()
    file = received.files["file"]
    root = archives.unpack(file.path, file.filename, folder, Limits(house.settings.max_unpacked_bytes))
    file.path.unlink()  # its room is needed no more
    facts = check_model_folder(root)
    model_id = new_id("mdl")
    stored: list[StoredFile] = []
    try:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            stored.append(_store(house, model_id, path, path.relative_to(root).as_posix()))
        model = _record(house, model_id, name, stored, facts)
    except Unavailable:  # perhaps after the row was written: what no row names goes with `limbeck gc`
        raise
    except BaseException:
        house.discard([one.key for one in stored])
        raise
    return _view(model, [FileView(path=one.path, bytes=one.bytes, sha256=one.sha256) for one in stored], None)


def _store(house: Services, model_id: str, path: Path, relative: str) -> StoredFile:
    done = house.storage.put_file(path, f"models/{model_id}/{relative}", move=True)
    return StoredFile(relative, done.key, done.bytes, done.sha256)


def _record(house: Services, model_id: str, name: str, files: list[StoredFile], facts: ModelFacts) -> Model:
    with house.database.session() as session:
        return catalogue.add_model(
            session,
            model_id=model_id,
            kind=ModelKind.TEACHER,
            name=name,
            files=files,
            labels=facts.labels,
            architecture=facts.architecture,
            layers=facts.layers,
            parameters=facts.parameters,
        )
