"""The students that are loaded: as many as the memory limit allows, the least recently asked ones go first."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import structlog

from api.inference.files import FileFacts, LocalFiles
from api.inference.memory import give_back
from limbeck.errors import Conflict, DamagedFile, InvalidModel, NotFound, Unavailable
from limbeck.formats import EIGHT_BITS, FILES, Format
from limbeck.runtime import Predictor
from limbeck.runtime.exits import FOLDER as EXITS
from limbeck.runtime.student import IMAGE_SIDE_FILES, SIDE_FILES, TOKENIZER
from models.providers import require_providers
from models.settings import Settings
from models.storage import Storage

log = structlog.get_logger("limbeck.api")

#: What a student takes, in bytes of its files. Measured with twelve and forty students of 3 layers: a graph of 70 MB
#: takes 70 (fp32), one of 17.5 takes 18.6 (int8), a tokenizer of 0.7 MB takes 7, and those that cut contexts have more
#: than one. Students with the same tokenizer share it, so their sum is an upper bound; what is left of it is room for
#: what all of them compute in.
_GRAPH_FACTOR = 1.1
_TOKENIZER_FACTOR = 10
_BASE_BYTES = 2 * 1024**2
#: For so long a name is not looked up again, and for so long again one caller looks it up while the others go on as
#: before: else all requests of a busy student ask the database at once. A model that another process deleted, or an
#: alias that it switched, may so answer for 2 s.
_TRUSTED_SECONDS = 1.0
#: For so long a student whose files are damaged or gone is not fetched, hashed and read again for each request.
_BROKEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A student in memory."""

    model_id: str
    format: Format
    bytes: int  #: estimated


@dataclass(slots=True)
class _Place:
    facts: Loaded  #: whether it cuts contexts is known when it is there
    predictor: Future[Predictor] = field(default_factory=Future)


@dataclass(slots=True)
class _Known:
    """What answers under a name."""

    key: tuple[str, Format]
    since: float  #: on the clock of :class:`Students`
    asked: bool = False  #: whether somebody looks it up again


class Students:
    """Predictors by model and format; every method may be called from several threads at once.

    A student that is dropped while somebody asks it answers that call, and is freed behind it. One that is larger than
    the limit is loaded all the same, alone.
    """

    def __init__(self, storage: Storage, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        assert settings.scratch_dir is not None  # Settings fills it in
        self._files = LocalFiles(storage, settings.scratch_dir / "students", settings.predict_cache_bytes)
        self._limit = settings.predict_memory_bytes
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._loading = 0  #: bytes of students that are being loaded, whether their places are still theirs or not
        self._places: OrderedDict[tuple[str, Format], _Place] = OrderedDict()
        self._clock = clock
        self._providers = settings.predict_providers
        self._call_threads = settings.predict_call_threads
        require_providers(settings)  # a server that cannot compute so does not start
        self._known: dict[str, _Known] = {}
        self._broken: dict[tuple[str, Format], tuple[float, str]] = {}  #: until when, and why
        self.generation = 0  #: of what names mean: what was looked up in one is not known in the next

    def get(self, model_id: str, files: Sequence[FileFacts], format: Format | None = None) -> Predictor:
        """The student, loaded now if it is not yet; of several callers at once one loads and the others wait for it.

        Args:
            files: of the model, as ``models.repository.catalogue.model_files`` gives them.
            format: default: ``onnx`` where there is one, else the next of :data:`limbeck.formats.FILES`.

        Raises:
            Conflict: the model has no such form.
            Unavailable: it cannot be loaded, as the storage is away, or a file is damaged or gone; the next call tries
                again, where a file is at fault some seconds later.
        """
        found, needed = files_of(model_id, files, format)
        key = model_id, found
        dropped = False
        with self._lock:
            place = self._places.get(key)
            waiting = place is not None
            if place is None:
                self._refuse_broken(key)
                place = _Place(Loaded(model_id, found, _estimate(needed)))
                dropped = self._make_room(place.facts.bytes)
                self._places[key] = place
            self._places.move_to_end(key)
        if dropped:
            give_back()  # before the next one takes its place
        if not waiting:
            with self._turn_to_load(place.facts.bytes):
                self._load(key, place, needed)
        return place.predictor.result()

    def _refuse_broken(self, key: tuple[str, Format]) -> None:
        until, why = self._broken.get(key, (-math.inf, ""))
        if self._clock() < until:
            raise Unavailable(why)
        self._broken.pop(key, None)

    def at_hand(self, name: str) -> Predictor | None:
        """The student of this id or alias, if it is loaded and was looked up a moment ago; asks nobody.

        None tells the caller to look it up, and to say so to :meth:`know`; where it grows old, one caller alone.
        """
        with self._lock:
            known = self._known.get(name)
            place = self._places.get(known.key) if known is not None else None
            if known is None or place is None or not place.predictor.done():
                return None
            age = self._clock() - known.since
            if age > 2 * _TRUSTED_SECONDS or (age > _TRUSTED_SECONDS and not known.asked):
                known.asked = True
                return None
            self._places.move_to_end(known.key)
        return place.predictor.result()

    def forget(self, model_id: str) -> None:
        """Drop a model that was deleted."""
        with self._lock:
            self.generation += 1
            self._known = {name: known for name, known in self._known.items() if known.key[0] != model_id}
            for kept in (self._places, self._broken):
                for key in [key for key in kept if key[0] == model_id]:
                    del kept[key]

    def know(self, name: str, model_id: str, predictor: Predictor, generation: int) -> None:
        """Let :meth:`at_hand` find a student under the ``name`` by which the shelf was just asked for it.

        Args:
            generation: from before the shelf was asked. Where a name has changed its meaning since, in this process,
                what the shelf said may be older than that.
        """
        with self._lock:
            if generation == self.generation:
                self._known[name] = _Known((model_id, predictor.format), self._clock())

    def knows(self, name: str) -> bool:
        """Whether a student that is still loaded was found under this name, whatever it means by now."""
        with self._lock:
            known = self._known.get(name)
            return known is not None and known.key in self._places

    def forget_name(self, name: str) -> None:
        """An alias means another model now."""
        with self._lock:
            self.generation += 1
            if name in self._known:
                self._known[name].since = -math.inf

    @property
    def loaded(self) -> tuple[Loaded, ...]:
        """What is loaded or being loaded, the least recently asked first."""
        with self._lock:
            return tuple(place.facts for place in self._places.values())

    @property
    def ready(self) -> dict[str, Predictor]:
        """Those that answer, by their ids."""
        with self._lock:
            found = [(model_id, place.predictor) for (model_id, _), place in self._places.items()]
        return {model_id: one.result() for model_id, one in found if one.done() and one.exception() is None}

    @property
    def names(self) -> dict[str, str]:
        """By which students that are loaded were found, beside their ids; of which model each is."""
        with self._lock:
            known = [*self._known.items()]
            loaded = {*self._places}
        valid = ((name, one.key) for name, one in known if one.key in loaded and one.since > -math.inf)
        return {name: model_id for name, (model_id, _) in valid if name != model_id}

    def _make_room(self, size: int) -> bool:
        """Whether it had to drop somebody."""
        before = len(self._places)
        total = size + sum(place.facts.bytes for place in self._places.values())
        while self._places and total > self._limit:
            _, dropped = self._places.popitem(last=False)
            total -= dropped.facts.bytes
        return len(self._places) < before

    @contextmanager
    def _turn_to_load(self, size: int) -> Iterator[None]:
        """Students that would not fit beside each other are loaded one after the other: one that is dropped meanwhile
        takes its memory all the same."""
        with self._turn:
            self._turn.wait_for(lambda: not self._loading or self._loading + size <= self._limit)
            self._loading += size
        try:
            yield
        finally:
            with self._turn:
                self._loading -= size
                self._turn.notify_all()

    def _load(self, key: tuple[str, Format], place: _Place, needed: Sequence[FileFacts]) -> None:
        try:
            with self._files.laid_out(needed) as folder:
                # What a call in eight bits multiplies is soon done: others wake later than that.
                threads = self._call_threads or (1 if key[1] in EIGHT_BITS else None)
                student = Predictor.load(folder, format=key[1], threads=threads, providers=self._providers)
            with self._lock:
                place.facts = replace(place.facts, bytes=_estimate(needed, student.tokenizers))
            place.predictor.set_result(student)
        except BaseException as error:
            with self._lock:
                if self._places.get(key) is place:
                    del self._places[key]
            # Whoever asks has sent nothing that is not valid, and the model is known: the fault is this server's.
            if isinstance(error, InvalidModel | DamagedFile | NotFound):
                log.error("a student cannot be loaded", model=key[0], error=error.message)
                error = Unavailable(f"The student {key[0]} cannot be loaded here: {error.message}")
                with self._lock:
                    self._broken[key] = self._clock() + _BROKEN_SECONDS, error.message
            place.predictor.set_exception(error)


def files_of(
    model_id: str, files: Sequence[FileFacts], wanted: Format | None = None
) -> tuple[Format, tuple[FileFacts, ...]]:
    """The form that answers, and the files that it needs.

    Raises:
        Conflict: the model cannot answer, or not in that form.
    """
    by_path = {file.path: file for file in files}
    forms = [form for form, path in FILES.items() if path in by_path]
    sides = next((sides for sides in (SIDE_FILES, IMAGE_SIDE_FILES) if all(path in by_path for path in sides)), None)
    if not forms or sides is None:
        raise Conflict(f"Model {model_id} cannot answer: only students that a job exported (`export: [onnx]`) can.")
    if wanted is not None and wanted not in forms:
        raise Conflict(f"Model {model_id} has no form {wanted}; it has: {', '.join(forms)}.")
    form = wanted or forms[0]
    layers = sorted(path for path in by_path if path.startswith(f"{EXITS}/")) if form == "onnx" else []
    return form, tuple(by_path[path] for path in (*sides, *(layers or [FILES[form]])))


def _estimate(needed: Sequence[FileFacts], tokenizers: int = 1) -> int:
    factors = (tokenizers * _TOKENIZER_FACTOR if file.path == TOKENIZER else _GRAPH_FACTOR for file in needed)
    return _BASE_BYTES + int(sum(factor * file.bytes for factor, file in zip(factors, needed, strict=True)))
