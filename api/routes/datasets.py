"""Data sets: upload, look, preview, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from api import examples, pages, uploads
from api.deps import House, Services
from api.openapi import answers, file_part, multipart, text_part
from api.schemas import DatasetView, Listing, PreviewView
from api.uploads import Upload
from limbeck import data
from limbeck.config import TASKS, Columns
from limbeck.errors import InvalidDataset, NotFound, Problem, Unavailable
from models.base import new_id
from models.dataset import Dataset
from models.repository import catalogue

router = APIRouter(prefix="/v1/datasets", tags=["data sets"], dependencies=pages.STRICT)

Split = Literal["train", "validation", "test"]
_SPLITS = ("train", "validation", "test")
_COLUMNS = tuple(Columns.model_fields)

_FORM = multipart(
    "train",
    {
        "train": file_part(
            "CSV, TSV, JSONL, Parquet, or TXT with a text a line, or the gzip of one; the name's ending says which."
        ),
        "validation": file_part("Cut from `train` where it is not given, stratified where an example has one label."),
        "test": file_part(
            "The same; but where `validation` is given and this is not, that one is reported on, as `test`, and a new "
            "`validation` is cut."
        ),
        "name": text_part("For people; default: the name of the train file.", "reviews"),
        "text": text_part("The column with the text; default: guessed from the usual names.", "review"),
        "text_pair": text_part("The column with the second text of a pair.", "hypothesis"),
        "label": text_part("The column with the label, a list of labels, or a number.", "stars"),
        "tokens": text_part("The column with lists of tokens, for token classification.", "tokens"),
        "tags": text_part("The column with lists of as many tags, such as B-person.", "ner_tags"),
        "question": text_part("The column with the question, for question answering.", "question"),
        "context": text_part("The column with the text that holds the answer.", "context"),
        "answers": text_part("The column with the answers: text and answer_start, as in SQuAD.", "answers"),
        "image": text_part("The column with encoded images: bytes, {bytes, path}, or base64.", "img"),
        "task": text_part("What the data are for; default: what the columns and labels say.", "regression"),
    },
)


@router.post(
    "",
    status_code=201,
    summary="Upload a data set",
    response_model=DatasetView,
    openapi_extra=_FORM,
    responses=answers(413, 422, 503, 507, created=(DatasetView, examples.DATASET)),
)
async def upload_dataset(request: Request, house: House) -> Response:
    """Checked as a whole before anything is stored; what is wrong is named by row and column."""
    limit = house.settings.max_upload_bytes
    async with uploads.receive(
        request, house.scratch, files=_SPLITS, fields=("name", "task", *_COLUMNS), limit=limit
    ) as received:
        view = await to_thread.run_sync(_take_in, house, received, limiter=house.intake)
    headers = {"Location": f"/v1/datasets/{view.id}"}
    return Response(view.model_dump_json(), 201, headers, media_type="application/json")


@router.get(
    "",
    summary="List data sets, newest first",
    responses=answers(422, 503, ok=(Listing[DatasetView], examples.listing(examples.DATASET))),
)
def list_datasets(house: House, limit: pages.Limit = 20, cursor: pages.Cursor = None) -> Listing[DatasetView]:
    with house.database.reading() as session:
        return pages.listing(catalogue.list_datasets(session, limit=limit, cursor=cursor), DatasetView.of)


@router.get(
    "/{dataset_id}",
    summary="Look at a data set",
    responses=answers(404, 503, ok=(DatasetView, examples.DATASET)),
)
def get_dataset(house: House, dataset_id: str) -> DatasetView:
    """Its splits, and a profile: columns, labels, lengths, warnings."""
    with house.database.reading() as session:
        return DatasetView.of(catalogue.get_dataset(session, dataset_id))


@router.get(
    "/{dataset_id}/preview",
    summary="Look into a data set",
    responses=answers(404, 422, 503, ok=(PreviewView, examples.PREVIEW)),
)
def preview_dataset(
    house: House,
    dataset_id: str,
    split: Annotated[Split, Query(description="Which part.")] = "train",
    rows: Annotated[int, Query(ge=1, le=100, description="How many rows, from the first on.")] = 10,
) -> PreviewView:
    """Rows as they are learned from."""
    with house.database.reading() as session:
        splits = catalogue.get_dataset(session, dataset_id).splits
    if split not in splits:
        raise NotFound(f"Data set {dataset_id} has no split {split!r}; it has: {', '.join(splits)}.")
    key = splits[split]["key"]
    local = house.storage.local_path(key)
    if local is not None:
        return PreviewView(split=split, rows=data.preview(local, rows))
    with uploads.working_folder(house.scratch) as folder:
        house.storage.get_file(key, folder / "split.parquet")
        return PreviewView(split=split, rows=data.preview(folder / "split.parquet", rows))


@router.delete("/{dataset_id}", status_code=204, summary="Delete a data set", responses=answers(404, 409, 503))
def delete_dataset(house: House, dataset_id: str) -> None:
    """409 while a job that has not ended needs it."""
    with house.database.session() as session:
        keys = catalogue.delete_dataset(session, dataset_id)
    house.discard(keys)


def _take_in(house: Services, received: Upload) -> DatasetView:
    """Check, store, and record what came; nothing stays where one of these fails."""
    name = uploads.name_of(received, "train")
    out = received.folder / "splits"
    out.mkdir()
    files = {split: (file.path, file.filename) for split, file in received.files.items()}
    limit = house.settings.max_unpacked_bytes
    ingested = data.ingest(files, out, columns=_columns(received), max_unpacked_bytes=limit, task=_task(received))
    dataset_id = new_id("ds")
    splits: dict[str, dict[str, Any]] = {}
    try:
        for split, facts in ingested.splits.items():
            key = f"datasets/{dataset_id}/{split}.parquet"
            stored = house.storage.put_file(out / f"{split}.parquet", key, move=True)
            splits[split] = dict(facts) | {"bytes": stored.bytes, "sha256": stored.sha256, "key": stored.key}
        with house.database.session() as session:
            return DatasetView.of(_record(session, dataset_id, name, splits, ingested.profile, ingested.sha256))
    except Unavailable:  # perhaps after the row was written: what no row names goes with `limbeck gc`
        raise
    except BaseException:
        house.discard([split["key"] for split in splits.values()])
        raise


def _record(
    session: Session, dataset_id: str, name: str, splits: dict[str, Any], profile: dict[str, Any], sha256: str
) -> Dataset:
    return catalogue.add_dataset(
        session, dataset_id=dataset_id, name=name, splits=splits, profile=profile, sha256=sha256
    )


def _task(received: Upload) -> str | None:
    """
    Raises:
        InvalidDataset: there is no such task.
    """
    task = received.fields.get("task") or None
    if task is not None and task not in TASKS:
        detail = f"found {task!r}; allowed: {', '.join(TASKS)}"
        raise InvalidDataset(f"task: {detail}", [Problem("/task", detail)])
    return task


def _columns(received: Upload) -> Columns:
    return Columns(**{column: received.fields[column] for column in _COLUMNS if received.fields.get(column)})
