"""``limbeck download`` and ``limbeck predict``."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from limbeck.cli.json_lines import Answering, answered
from limbeck.cli.output import DEFAULT_URL, AsJson, Url, connect, err, print_json, say
from limbeck.client import Client
from limbeck.errors import InvalidInput
from limbeck.faults import Refused, ask_the_rest, first_fault
from limbeck.formats import FILES
from limbeck.image_files import SUFFIXES

_BATCH = 32
#: Of a batch as JSON: a request may have 1 MiB. An image that is larger goes alone.
_BATCH_BYTES = 900_000
#: Exit code where lines were skipped.
_SOME_SKIPPED = 3

BadLines = Literal["stop", "skip"]


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
    bad_lines: Annotated[
        BadLines,
        typer.Option(
            help="At a line of --file that cannot be read or asked: stop (exit code 2), or skip it; an `error` is in "
            "its place, and the exit code is 3 at the end."
        ),
    ] = "stop",
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
    if bad_lines != "stop" and file is None:
        raise InvalidInput("--bad-lines says what becomes of lines of --file; there is none.")
    skip = bad_lines == "skip"
    with ExitStack() as stack:
        options = {"top_k": top_k, "speed": speed}
        if local:
            answering = _local_student(local, options, many=file is not None, skip=skip)
        else:
            answering = _remote_student(stack.enter_context(connect(url)), str(model), options, skip=skip)
        if file is not None:
            binary = sys.stdin.buffer if str(file) == "-" else stack.enter_context(file.open("rb"))
            _print_lines(answering, binary, skip=skip)
            return
        inputs = [_input(text, pair, context) for text in texts]
        for text, (_, answer) in zip(texts, answering(inputs), strict=True):
            _show(text, answer, as_json=as_json, alone=len(texts) == 1)


def _input(text: str, pair: str | None, context: str | None) -> Any:
    """What a student is asked of an argument: a question, a pair, an image where it names a file of one, or a text."""
    if context is not None:
        return {"question": text, "context": context}
    if pair is not None:
        return {"text": text, "text_pair": pair}
    return _image(text) or text


def _print_lines(answering: Answering, binary: BinaryIO, *, skip: bool) -> None:
    """A line of JSON for each of the file's.

    Raises:
        typer.Exit: some were skipped.
    """
    count, skipped = 0, 0
    for given, answer in answered(answering, binary, skip=skip):
        count += 1
        if isinstance(answer, Refused):
            skipped += 1
            print_json({"input": given, "error": answer.message})
        else:
            print_json({"input": given, "prediction": answer})
    if skipped:
        say(f"{skipped:,} of {count:,} lines could not be read or asked; the `error` of each says why.", "yellow")
        raise typer.Exit(_SOME_SKIPPED)


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


def _remote_student(client: Client, name: str, options: dict[str, Any], *, skip: bool) -> Answering:
    model = resolve(client, name)

    def ask(batch: list[Any]) -> list[Any]:
        answers: list[Any] = client.predict(model, batch, **options)
        return answers

    def answering(inputs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for batch in _batches(inputs):
            try:
                answers = ask_the_rest(ask, batch) if skip else ask(batch)
            except InvalidInput as error:
                fault = first_fault(error)
                if fault is not None and (before := batch[: fault.place]):
                    yield from zip(before, ask(before), strict=True)
                raise
            yield from zip(batch, answers, strict=True)

    return answering


def _local_student(folder: Path, options: dict[str, Any], *, many: bool, skip: bool) -> Answering:
    """``many``: texts keep every core busy side by side; else the cores share the work on each."""
    from limbeck.runtime import Predictor, stream

    student = Predictor.load(folder, threads=1 if many else None)

    def answering(inputs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        return stream(student, inputs, skip=skip, **options)

    return answering


def _batches(inputs: Iterable[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    broken: InvalidInput | None = None
    try:
        for one in inputs:
            own = (
                0 if isinstance(one, Refused) else len(json.dumps(one))
            )  # at least as long as it is sent, where fewer characters are escaped
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
