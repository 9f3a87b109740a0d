"""From texts to tensors: encoding once, batches of like length that stay random, padding to the longest in a batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from limbeck.data import Split

#: Batches that are sorted by length together. More makes padding rarer, fewer keeps the order more random; at 50 the
#: padding of short sentences is 2 % and any two examples of a small data set still meet.
POOL = 50
#: Tokens of a batch that is only run forwards.
FORWARD_TOKENS = 4096
_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Encoded:
    """A split as token ids, all examples end to end."""

    ids: NDArray[np.int32]  # (tokens,)
    segments: NDArray[np.int8] | None  # (tokens,): 1 in the second text of a pair; None where all are 0 or unused
    starts: NDArray[np.int64]  # (rows + 1,)
    labels: NDArray[Any]  # (rows,) or (rows, …); of tasks that label each token (tokens,), -100 where there is none
    per_token: bool = False  #: whether a model answers each token, (tokens, classes), and not each row
    owners: NDArray[np.int64] | None = None  # (rows,): the example that a row is a part of; None: each is its own
    places: NDArray[np.int32] | None = None  # (tokens, …): where each token stands in its example
    #: What the metrics need of each example beside the labels, by name; and texts or names that these are places in.
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    strings: Sequence[str] = ()
    #: Whether tokens are hidden: labels are the tokens that are, ``places`` what hides a token, or -1.
    cloze: bool = False
    together: int = 1  #: so many rows, one behind the other, are an example and stay in one batch: the texts of a pair

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def tagged(self) -> bool:
        """Whether each token has a label of its own."""
        return self.per_token and self.labels.ndim == 1

    @property
    def answers(self) -> int:
        """How many rows an array of a model's answers over the whole split has."""
        if self.cloze:
            return int((self.labels != -100).sum())
        return len(self.ids) if self.per_token else len(self)

    def answer_places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in such an array the answers to these rows stand."""
        if self.cloze:
            tokens = self.tokens_of(rows)
            hidden = self.labels != -100
            places: NDArray[np.int64] = (np.cumsum(hidden) - 1)[tokens[hidden[tokens]]]
            return places
        return self.tokens_of(rows) if self.per_token else rows

    @property
    def lengths(self) -> NDArray[np.int64]:  # (rows,)
        return np.diff(self.starts)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these rows, in a time that hangs on them alone."""
        return self.starts[rows + 1] - self.starts[rows]

    @property
    def examples(self) -> int:
        """How many examples there are; more rows where long ones come in parts."""
        return len(self) // self.together if self.owners is None else int(self.owners[-1]) + 1

    @property
    def groups(self) -> int:
        """How many things batches are made of: rows, or those that stay together."""
        return len(self) // self.together

    def batches(self, batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of each batch of an epoch, see :func:`training_batches`; ``batch_size`` counts :attr:`groups`."""
        longest = self.lengths.reshape(-1, self.together).max(axis=1)
        found = training_batches(longest, batch_size, seed=seed, epoch=epoch)
        return [self.rows_in(groups) for groups in found]

    def parts(self, rows: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
        """A batch's rows in so many parts, fewer where there are not as many groups."""
        split = np.array_split(rows.reshape(-1, self.together), count)
        return [part.ravel() for part in split if len(part)]

    def parts_within(self, rows: NDArray[np.int64], tokens: int) -> int:
        """The fewest :meth:`parts` of a batch of which none has more tokens than these, padding included; a group that
        has more on its own is one."""
        each = max(1, tokens // (int(self.lengths_of(rows).max()) * self.together))
        return -(-len(rows) // (self.together * each))

    def rows_in(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of these :attr:`groups`, in their order."""
        return (groups[:, None] * self.together + np.arange(self.together)).ravel()

    def rows_of(self, examples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of these examples, in their order."""
        if self.owners is None:
            return self.rows_in(np.asarray(examples, dtype=np.int64))
        return _places(self._bounds(self.owners), np.asarray(examples, dtype=np.int64))

    def _bounds(self, owners: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each example's rows begin, and behind them: examples stand one behind the other."""
        return np.searchsorted(owners, np.arange(self.examples + 1))

    def tokens_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of the rows' tokens."""
        return _places(self.starts, rows)

    def read(self) -> dict[str, NDArray[Any]]:
        """Everything that a model's answers hang on, by name."""
        arrays: dict[str, NDArray[Any]] = {"ids": self.ids, "starts": self.starts}
        return arrays | ({} if self.segments is None else {"segments": self.segments})

    def inputs(
        self, rows: NDArray[np.int64], mask: NDArray[np.bool_], places: NDArray[np.int64], pad_id: int
    ) -> dict[str, NDArray[Any]]:
        """What a model reads of these rows, by name.

        Args:
            mask: (rows, tokens of the longest): where there is a token.
            places: of the rows' tokens, as :meth:`tokens_of` has them.
        """
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.ids[places]
        found = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self.segments is not None:
            segments = np.zeros(mask.shape, dtype=np.int64)
            segments[mask] = self.segments[places]
            found["token_type_ids"] = segments
        return found

    def take(self, examples: Sequence[int] | NDArray[np.int64]) -> Encoded:
        """These examples alone, whole and in this order."""
        rows = self.rows_of(examples)
        tokens = self.tokens_of(rows)
        owners = None
        if self.owners is not None:
            counts = np.diff(self._bounds(self.owners))[np.asarray(examples, dtype=np.int64)]
            owners = np.repeat(np.arange(len(examples)), counts)
        return Encoded(
            self.ids[tokens],
            None if self.segments is None else self.segments[tokens],
            np.concatenate(([0], np.cumsum(self.lengths_of(rows)))).astype(np.int64),
            self.labels[tokens if self.tagged else rows],
            self.per_token,
            owners,
            None if self.places is None else self.places[tokens],
            {name: [values[one] for one in examples] for name, values in self.facts.items()},
            self.strings,
            self.cloze,
            self.together,
        )

    @classmethod
    def join(cls, parts: Sequence[Encoded]) -> Encoded:
        """The examples of all parts, in order; several only where an example is one row with a label of its own."""
        if len(parts) == 1:
            return parts[0]
        segments = None
        if any(part.segments is not None for part in parts):
            kinds = [np.zeros(len(part.ids), np.int8) if part.segments is None else part.segments for part in parts]
            segments = np.concatenate(kinds)
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            np.concatenate([part.ids for part in parts]),
            segments,
            np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            np.concatenate([part.labels for part in parts]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors, for a checkpoint."""
        named = {"segments": self.segments, "owners": self.owners, "places": self.places}
        arrays: dict[str, NDArray[Any]] = {"ids": self.ids, "starts": self.starts, "labels": self.labels}
        arrays |= {name: array for name, array in named.items() if array is not None}
        if self.cloze:
            arrays["cloze"] = np.array([True])
        if self.together > 1:
            arrays["together"] = np.array([self.together])
        if self.per_token:
            rest = json.dumps({"facts": dict(self.facts), "strings": list(self.strings)}, ensure_ascii=False).encode()
            arrays["rest"] = np.frombuffer(rest, dtype=np.uint8).copy()
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Encoded:
        arrays = {name: read_only(tensor) for name, tensor in tensors.items()}
        rest = json.loads(arrays["rest"].tobytes()) if "rest" in arrays else {}
        return cls(
            arrays["ids"],
            arrays.get("segments"),
            arrays["starts"],
            arrays["labels"],
            "rest" in arrays,
            arrays.get("owners"),
            arrays.get("places"),
            **rest,
            cloze="cloze" in arrays,
            together=int(arrays["together"][0]) if "together" in arrays else 1,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Some examples on the device."""

    inputs: dict[str, Tensor]  # input_ids, attention_mask, perhaps token_type_ids: each (examples, tokens); or
    # pixel_values: (examples, channels, height, width)
    labels: Tensor  # (examples,), or what the task has; (examples, tokens) where each token has one
    teacher_logits: Tensor | None = None  # (examples, classes), or (examples, tokens, classes)
    counts: Mapping[str, int] = field(default_factory=dict)  #: how many units a loss term may be the mean of
    places: NDArray[np.int64] | None = None  # (examples,): where in the split they stand
    labelled: Tensor | None = None  # (labelled,): the places in the batch of examples that have a label; None: all
    weights: Tensor | None = None  # (examples,): what they count; None: alike, or not known before the student answers
    labelled_weight: Tensor | None = None  # (): the mean of these over all examples of the batch that have a label
    tagged: Tensor | None = None  # (labelled,): where tokens have a label of their own, the places of those that have,
    # counted through the batch's (examples, tokens)
    teacher_states: Tensor | None = None  # (examples, places, width): of the first teacher's first token, in the places
    # that the method names; None where it names none, or all of them together would take too much room
    stands_in: bool = False  #: another rank's examples, on a rank that has none of the batch: they count nothing

    @property
    def mask(self) -> Tensor:  # (examples, tokens)
        """1 where there is a token; the patches of an image all are."""
        found = self.inputs.get("attention_mask")
        if found is not None:
            return found
        examples = self.counts["examples"]
        return torch.ones((examples, self.counts["tokens"] // examples), device=self.labels.device)


def read_only(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values where they are: those of a mapped file are not read before they are used, and nobody's own."""
    array: NDArray[Any] = tensor.numpy()
    array.flags.writeable = False
    return array


def encode(
    tokenizer: Any,
    split: Split,
    max_length: int,
    poll: Callable[[], None] = lambda: None,
    *,
    labels: NDArray[Any] | None = None,
) -> Encoded:
    """Tokenise a split; texts longer than ``max_length`` tokens are cut, of a pair the longer one first.

    ``labels`` are those of the rows where they are not the split's own whole numbers.
    """
    ids: list[list[int]] = []
    segments: list[list[int]] = []
    for start in range(0, len(split.texts), _CHUNK):
        poll()
        texts = split.texts[start : start + _CHUNK]
        pairs = None if split.pairs is None else split.pairs[start : start + _CHUNK]
        coded = tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
        ids += coded["input_ids"]
        segments += coded.get("token_type_ids", [])
    starts = np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64)
    kinds = end_to_end(segments, np.int8) if segments else None
    return Encoded(
        end_to_end(ids, np.int32),
        kinds if kinds is not None and kinds.any() else None,
        starts,
        np.asarray(split.labels, dtype=np.int64) if labels is None else labels,
    )


def end_to_end(rows: Sequence[Sequence[int]], kind: Any) -> NDArray[Any]:
    return np.fromiter((value for row in rows for value in row), dtype=kind, count=sum(map(len, rows)))


def _places(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the tokens of these examples stand."""
    none = np.empty(0, dtype=np.int64)
    return np.concatenate([none, *(np.arange(starts[row], starts[row + 1]) for row in rows)])


def training_batches(lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The row numbers of each batch of an epoch: a function of seed and epoch alone, so that a resumed run meets the
    same batches. Every example comes once. Batches hold examples of like length, in random order."""
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch_size * POOL):
        pool = order[start : start + batch_size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


def forward_batches(lengths: NDArray[np.int64], *, tokens: int = FORWARD_TOKENS) -> list[NDArray[np.int64]]:
    """Every row once, sorted by length, in batches of at most ``tokens`` tokens with padding (and at least a row)."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > tokens:
            batches.append(order[start:end])
            start = end
    return batches


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches of a split's rows."""

    data: Encoded
    pad_id: int
    device: torch.device
    teacher_logits: Tensor | None = None  # (rows of the split, or its tokens, classes), on the CPU
    labelled: int | None = None  #: the first so many examples have a label; None: all
    teacher_states: Tensor | None = None  # (rows, places, width), on the CPU, or mapped

    def __call__(self, rows: NDArray[np.int64]) -> Batch:
        lengths = self.data.lengths_of(rows)
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        places = self.data.tokens_of(rows)
        found = self.data.inputs(rows, mask, places, self.pad_id)
        inputs = {name: self._on_device(values) for name, values in found.items()}
        labels, labelled, tagged = self.data.labels, None, None
        # Which have a label is looked up here: a GPU asked for it would have to be waited for.
        if self.data.tagged:
            whole = np.full(mask.shape, -100, dtype=np.int64)
            whole[mask] = labels[places]
            labels, tagged = whole, self._on_device(np.flatnonzero(whole != -100))
        else:
            labels = labels[rows]
        if self.labelled is not None:
            labelled = self._on_device(np.flatnonzero(rows < self.labelled))
        teacher, counts = self._teacher(rows, places, mask), self.counts(rows)
        sent, states = self._on_device(labels), self._states(rows)
        return Batch(inputs, sent, teacher, counts, rows, labelled, tagged=tagged, teacher_states=states)

    def counts(self, rows: NDArray[np.int64]) -> dict[str, int]:
        """How many units of each kind a batch of these rows has; those of its parts sum to it."""
        lengths = self.data.lengths_of(rows)
        counts = {"examples": len(rows), "tokens": int(lengths.sum()), "pairs": int((lengths**2).sum())}
        if self.data.tagged:
            counts["labelled"] = int((self.data.labels[self.data.tokens_of(rows)] != -100).sum())
        if self.labelled is not None:
            counts["labelled"] = int((rows < self.labelled).sum())
        return counts

    def _teacher(self, rows: NDArray[np.int64], places: NDArray[np.int64], mask: NDArray[np.bool_]) -> Tensor | None:
        if self.teacher_logits is None:
            return None
        if not self.data.per_token:
            return self._send(self.teacher_logits[torch.from_numpy(rows)])
        padded = self.teacher_logits.new_zeros((*mask.shape, self.teacher_logits.shape[-1]))
        padded[torch.from_numpy(mask)] = self.teacher_logits[torch.from_numpy(places)]
        return self._send(padded)

    def _states(self, rows: NDArray[np.int64]) -> Tensor | None:
        return None if self.teacher_states is None else self._send(self.teacher_states[torch.from_numpy(rows)])

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        return self._send(torch.from_numpy(array))

    def _send(self, tensor: Tensor) -> Tensor:
        # From pageable memory a GPU copies while the CPU waits.
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)
