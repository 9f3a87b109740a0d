"""``limbeck download`` and ``limbeck predict``."""

from __future__ import annotations

import base64
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from limbeck.cli.output import DEFAULT_URL, AsJson, Url, connect, err, print_json, say
from limbeck.client import Client
from limbeck.errors import InvalidInput
from limbeck.faults import first_fault
from limbeck.formats import FILES
from limbeck.image_files import SUFFIXES

_BATCH = 32
#: Of a batch as JSON: a request may have 1 MiB. An image that is larger goes alone.
_BATCH_BYTES = 900_000

#: Inputs in; each with its answer, in the shapes of Hugging Face pipelines, out.
_Answering = Callable[[Iterable[Any]], Iterator[tuple[Any, Any]]]


def download(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A job (its student), a model or an alias.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder, or a .tar.gz to keep packed.")
    ] = None,
    format: Annotated[str, typer.Option(help=f"safetensors, {', '.join(FILES)}.")] = "safetensors",
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch a model. A download that broke off goes on."""
    target = output or Path(model)
    with connect(url) as client, _bar() as bar:
        task = bar.add_task(f"{model}", total=None)
        path = client.download(
            resolve(client, model),
            target,
            format=format,
            on_bytes=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(f"Saved as {path}.")


def predict(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL TEXT…", help="A job, model or alias, and texts, or files of images.", show_default=False
        ),
    ] = None,
    pair: Annotated[str | None, typer.Option(help="The second text, for a student of text pairs.")] = None,
    context: Annotated[str | None, typer.Option(help="Where the answer is, for a student of questions.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="So many labels, best first.")] = None,
    speed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of a student with early exits: 0 is all layers.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="JSONL: texts, or objects with text and text_pair, question and context, or tokens; - is stdin."
        ),
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option(help="A student's folder, downloaded with --format onnx; no server then, and no MODEL."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Ask a student. With --file, each line of input becomes a line of JSON."""
    texts = list(words or ())
    model = None if local or not texts else texts.pop(0)
    if model is None and local is None:
        raise InvalidInput("Name a MODEL (a job, a model or an alias), or --local FOLDER.")
    if bool(texts) == (file is not None):
        raise InvalidInput("Give either texts or --file, and not both.")
    with ExitStack() as stack:
        options = {"top_k": top_k, "speed": speed}
        if local:
            answering = _local_student(local, options, many=file is not None)
        else:
            answering = _remote_student(stack.enter_context(connect(url)), str(model), options)
        if file is not None:
            binary = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
            for given, answer in _answered(answering, binary):
                print_json({"input": given, "prediction": answer})
            return
        inputs: list[Any] = [text if pair is None else {"text": text, "text_pair": pair} for text in texts]
        if pair is None and context is None:
            inputs = [_image(text) or text for text in texts]
        if context is not None:
            inputs = [{"question": text, "context": context} for text in texts]
        for text, (_, answer) in zip(texts, answering(inputs), strict=True):
            _show(text, answer, as_json=as_json, alone=len(texts) == 1)


def _image(text: str) -> str | None:
    """Where a text names a file that is an image, that in base64."""
    if not text.lower().endswith(SUFFIXES):
        return None
    try:
        path = Path(text).expanduser()
        named = path.is_file()
    except (OSError, RuntimeError):  # too long for a path, or in the home of nobody: a text
        return None
    return base64.b64encode(path.read_bytes()).decode() if named else None


def resolve(client: Client, name: str) -> str:
    """A job's id means its student."""
    return client.job(name).student_id if name.startswith("job_") else name


def _remote_student(client: Client, name: str, options: dict[str, Any]) -> _Answering:
    model = resolve(client, name)

    def answering(inputs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for batch in _batches(inputs):
            try:
                answers: list[Any] = client.predict(model, batch, **options)
            except InvalidInput as error:
                fault = first_fault(error)
                if fault is not None and (before := batch[: fault.place]):
                    yield from zip(before, client.predict(model, before, **options), strict=True)
                raise
            yield from zip(batch, answers, strict=True)

    return answering


def _local_student(folder: Path, options: dict[str, Any], *, many: bool) -> _Answering:
    """``many``: texts keep every core busy side by side; else the cores share the work on each."""
    from limbeck.runtime import Predictor, stream

    student = Predictor.load(folder, threads=1 if many else None)

    def answering(inputs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        return stream(student, inputs, **options)

    return answering


def _answered(answering: _Answering, binary: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The inputs of a file of JSON Lines with their answers.

    Raises:
        InvalidInput: a line cannot be read, or asked; those in front of it have been answered.
    """
    # What is no UTF-8 is told of where its line is looked at. Programs on Windows put a mark in front of a file.
    lines = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")
    numbers: deque[int] = deque()  # of the lines that were read and not answered yet
    try:
        for pair in answering(_read_inputs(lines, numbers)):
            numbers.popleft()
            yield pair
    except InvalidInput as error:
        fault = first_fault(error)
        if fault is None:
            raise
        raise InvalidInput(f"Line {numbers[0]} cannot be asked: {fault}") from error


def _read_inputs(lines: Iterable[str], numbers: deque[int]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        one = _read_input(line, number)
        numbers.append(number)
        yield one


def _read_input(line: str, number: int) -> Any:
    try:
        line.encode()
        value = json.loads(line)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"Line {number} is not UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"Line {number} is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("question"), str) and isinstance(value.get("context"), str):
        return {key: value[key] for key in ("question", "context")}
    of_text = isinstance(value, dict) and isinstance(value.get("text"), str)
    if isinstance(value, dict) and isinstance(value.get("tokens"), list) and not of_text:
        return {"tokens": value["tokens"]}
    if not isinstance(value, str) and not of_text:
        raise InvalidInput(
            f"Line {number} is neither a text nor an object with a text in `text`, nor one with `question` and "
            f"`context`, nor one with a list in `tokens`: {line.strip()[:80]}"
        )
    return value if isinstance(value, str) else _texts(value, number)


def _texts(value: dict[str, Any], number: int) -> dict[str, str]:
    """An object's texts; a second one that is null is none."""
    pair = value.get("text_pair")
    if pair is None:
        return {"text": value["text"]}
    if not isinstance(pair, str):
        raise InvalidInput(f"Line {number} has no text in `text_pair`: {json.dumps(pair, ensure_ascii=False)[:80]}")
    return {"text": value["text"], "text_pair": pair}


def _batches(inputs: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    broken: InvalidInput | None = None
    try:
        for one in inputs:
            own = len(json.dumps(one))  # at least as long as it is sent, where fewer characters are escaped
            if batch and (len(batch) == _BATCH or size + own > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(one)
            size += own
    except InvalidInput as error:  # a line; those in front of it are answered first
        broken = error
    if batch:
        yield batch
    if broken is not None:
        raise broken


def _show(text: str, answer: Any, *, as_json: bool, alone: bool) -> None:
    if as_json:
        print_json({"input": text, "prediction": answer})
        return
    found = answer if isinstance(answer, list) else [answer]
    if found and isinstance(found[0], float):
        typer.echo(json.dumps(found) + ("" if alone else f"\t{text}"))
        return
    if found and isinstance(found[0], list):  # of several masked tokens, one after the other
        found = [one for each in found for one in each]
    for one in found:
        typer.echo(f"{_named(one)}\t{one['score']:.4f}" + ("" if alone else f"\t{text}"))


def _named(one: dict[str, Any]) -> str:
    """A label, an answer, a masked token, or an entity with its type."""
    if "entity_group" in one:
        return f"{one['entity_group']}\t{one['word']}"
    return str(next(one[name] for name in ("label", "answer", "token_str") if name in one))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
