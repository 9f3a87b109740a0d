"""What a student is to be, from its options and its origin's configuration: depth, width, and what does not fit.

Imports no torch: the API process refuses a student that cannot be before anybody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from limbeck.errors import InvalidConfig, Problem
from limbeck.families import FAMILIES, Family
from limbeck.stages import blocks_of, missing_firsts

if TYPE_CHECKING:
    from limbeck.config import Student
    from limbeck.model_folder import ModelFacts

#: What a method may need of a student (``limbeck.method_checks.needs_of``), in words for people.
OFFERS = {
    "steps": "layers that can be run one by one, as those of BERT, RoBERTa, XLM-R, DistilBERT and ELECTRA",
    "layers": "layers as a transformer has them, with hidden states after each",
    "relations": "queries, keys and values into which positions are not turned afterwards, as ModernBERT's are",
    "scores": "attention that is the product of queries and keys alone, as BERT's is",
    "own_layers": "layers of its own for each place, where ALBERT applies one again and again",
    "same_width": "the width of the teacher, as its states are compared with the teacher's",
    "same_heads": "as many attention heads as the teacher",
    "teacher_layers": "layers of the teacher's own shape",
    "like_layers": "layers that all see the same, where some of ModernBERT's see a window around each token alone",
    "inherited": "the teacher's own embeddings and head, which it leaves as they are: student.start 'svd' and no "
    "narrower word table",
    "elastic": "layers of its own for each place, with neurons that have no gates, cut from the teacher's: only "
    "student.layers and the numbers of neurons and heads may differ",
}
#: Units for each direction of a recurrent student of which nothing is said.
RECURRENT_UNITS = 256
#: Families whose word table may be narrower than their layers in plain transformers.
FACTORISED = ("albert", "deberta-v2", "electra")


@dataclass(frozen=True, slots=True)
class Preset:
    """A public size: TextBrewer's README (version 0.2.1) has layers, widths and feed-forward widths; heads are those of
    its example configurations, and of ELECTRA-small for T12-nano, whose structure it has."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int


PRESETS = {
    "T6": Preset(6, 768, 3072, 12),
    "T3": Preset(3, 768, 3072, 12),
    "T3-small": Preset(3, 384, 1536, 12),
    "T4-tiny": Preset(4, 312, 1200, 12),
    "T12-nano": Preset(12, 256, 1024, 4),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A student, resolved. ``layers`` are those of its origin (the teacher, or ``student.source``) that it starts from;
    a recurrent student has none of them, only a ``depth``."""

    layers: tuple[int, ...]
    depth: int
    hidden_size: int
    intermediate_size: int
    heads: int
    embedding_size: int
    kept_heads: int | None = None  #: of each layer's ``heads``, where pruning takes some


def student_layers(student: Student, teacher_layers: int, stages: Sequence[int] = ()) -> tuple[int, ...]:
    """The teacher's layers (from 0) that the student starts from.

    Args:
        stages: of a teacher in stages, the blocks of each.

    Raises:
        InvalidConfig: at ``/student/layers`` (or ``/student/preset``), when the teacher has not so many.
    """
    if (found := next(_depth(student, teacher_layers, stages), None)) is not None:
        raise InvalidConfig(f"{found.pointer}: {found.detail}", [found])
    wanted = _wanted(student, teacher_layers, stages)
    if isinstance(wanted, tuple):
        return wanted
    if stages:
        return blocks_of(stages, wanted, student.init or "uniform")
    match student.init or default_start(wanted, teacher_layers):
        case "first":
            return tuple(range(wanted))
        case "last":
            return tuple(range(teacher_layers - wanted, teacher_layers))
        case "uniform":
            return tuple((i + 1) * teacher_layers // wanted - 1 for i in range(wanted))
        case "skip":
            return tuple(i * teacher_layers // wanted for i in range(wanted))


def default_start(kept: int, of: int) -> Literal["skip", "uniform"]:
    """What ``student.init`` is where neither user nor method says it (docs/adr/0013): every n-th layer where half of
    them are kept or more, and evenly spread ones with the last among them where there are fewer."""
    return "skip" if 2 * kept >= of else "uniform"


def depth(student: Student, origin_layers: int, stages: Sequence[int] = ()) -> int:
    """How many layers the student has."""
    if student.recurrent:
        return student.layers if isinstance(student.layers, int) else 1
    wanted = _wanted(student, origin_layers, stages)
    return len(wanted) if isinstance(wanted, tuple) else wanted


def _wanted(student: Student, origin_layers: int, stages: Sequence[int] = ()) -> int | tuple[int, ...]:
    if student.preset is not None:
        return PRESETS[student.preset].layers
    if student.layers is None:
        return origin_layers if student.source is not None else max(1, len(stages), origin_layers // 2)
    return student.layers


def resolve(student: Student, origin: ModelFacts) -> Shape:
    """The student's whole shape.

    Raises:
        InvalidConfig: it does not fit its origin; the fields are named.
    """
    found = tuple(problems(student, origin))
    if found:
        raise InvalidConfig("; ".join(f"{p.pointer}: {p.detail}" for p in found), found)
    if student.recurrent:
        units = student.hidden_size or RECURRENT_UNITS
        table = student.embedding_size or origin.embedding_size or origin.hidden_size
        return Shape((), depth(student, origin.layers), units, 0, 0, table)
    layers = student_layers(student, origin.layers, origin.stages)
    if origin.stages:
        return Shape(layers, len(layers), origin.hidden_size, 0, 0, origin.hidden_size)
    preset = None if student.preset is None else PRESETS[student.preset]
    width = student.hidden_size or (preset.hidden_size if preset else origin.hidden_size)
    heads = student.heads or (preset.heads if preset else _default_heads(width, origin))
    inner = student.intermediate_size or (
        preset.intermediate_size if preset else _default_inner(student, width, origin)
    )
    table = student.embedding_size or (
        origin.embedding_size if origin.embedding_size not in (None, origin.hidden_size) else width
    )
    return Shape(layers, len(layers), width, inner, heads, table or width, _kept_heads(student, heads))


def _kept_heads(student: Student, heads: int) -> int | None:
    if student.prune is None or student.prune.heads is None:
        return None
    return max(1, round(heads * (1 - student.prune.heads)))


def _default_heads(width: int, origin: ModelFacts) -> int:
    """Heads as wide as the teacher's where they fit, else as many of its heads as do."""
    head = origin.hidden_size // max(1, origin.heads)
    if width % head == 0:
        return width // head
    return next(count for count in range(origin.heads, 0, -1) if width % count == 0)


def _default_inner(student: Student, width: int, origin: ModelFacts) -> int:
    if student.prune is not None and student.prune.neurons is not None:
        return max(1, round(origin.intermediate_size * (1 - student.prune.neurons)))
    return max(1, origin.intermediate_size * width // origin.hidden_size)


def offers(student: Student, teacher: ModelFacts, source: ModelFacts | None = None) -> frozenset[str]:
    """Which of :data:`OFFERS` a student has whose options fit.

    Args:
        source: the facts of ``student.source``. While they are not known it counts as built like the teacher; the
            method looks again.
    """
    if student.recurrent:
        return frozenset()
    if teacher.stages:
        return frozenset({"own_layers", "teacher_layers"} if student.source is None else ())
    other = teacher if student.source is None else source or teacher
    theirs, ours = (FAMILIES.get(facts.model_type, Family()) for facts in (teacher, other))
    found = {"layers", *(("like_layers",) if teacher.like_layers else ())}
    found |= {"scores"} if theirs.fused_export and ours.fused_export else set()
    found |= set() if theirs.rotary or ours.rotary else {"relations"}
    found |= {"steps"} if ours.fused_export and not ours.shared else set()
    found |= set() if ours.shared else {"own_layers"}
    if student.source is None:
        return frozenset(_cut_offers(student, teacher, found))
    found |= {"same_width"} if other.hidden_size == teacher.hidden_size else set()
    found |= {"same_heads"} if 0 in (other.heads, teacher.heads) or other.heads == teacher.heads else set()
    return frozenset(found)


def _cut_offers(student: Student, teacher: ModelFacts, found: set[str]) -> set[str]:
    """``found``, and what hangs on the shape of a student that is cut from the teacher."""
    shape, family = resolve(student, teacher), FAMILIES.get(teacher.model_type, Family())
    found |= {"same_width"} if shape.hidden_size == teacher.hidden_size else set()
    found |= {"same_heads"} if shape.heads == (teacher.heads or shape.heads) else set()
    have = shape.hidden_size, shape.intermediate_size, shape.heads
    if have == (teacher.hidden_size, teacher.intermediate_size or shape.intermediate_size, teacher.heads):
        found.add("teacher_layers")
    table = shape.hidden_size, shape.embedding_size
    if student.start == "svd" and table == (teacher.hidden_size, teacher.embedding_size or teacher.hidden_size):
        found.add("inherited")
        found |= {"elastic"} if shape.heads == teacher.heads and not (family.shared or family.gated) else set()
    if shape.kept_heads is not None:
        found -= {"steps", "scores", "same_heads", "teacher_layers"}
    return found


def problems(student: Student, origin: ModelFacts) -> Iterator[Problem]:
    """What of the student's options does not fit its origin; pointers start at ``/student``."""
    if student.recurrent:
        yield from _table(student, origin)
        return
    found = list(_depth(student, origin.layers, origin.stages))
    yield from found
    if student.source is None and not origin.stages:
        yield from _width(student, origin)
        yield from _table(student, origin)
        yield from _fewer_heads(student, origin)


def _fewer_heads(student: Student, origin: ModelFacts) -> Iterator[Problem]:
    """Whether heads can go, and one does."""
    kept, family = _kept_heads(student, origin.heads), FAMILIES.get(origin.model_type)
    if kept is None or student.prune is None or family is None:
        return
    at = "/student/prune/heads"
    if not family.loses_heads:
        able = ", ".join(name for name, one in FAMILIES.items() if one.loses_heads)
        yield Problem(at, f"found a teacher of the type {origin.model_type!r}; allowed for: {able}")
    elif kept == origin.heads:
        least = f"{1 / origin.heads:.3g}"
        yield Problem(at, f"found {student.prune.heads} of {origin.heads} heads, which is none; allowed: {least} on")


def _depth(student: Student, origin_layers: int, stages: Sequence[int] = ()) -> Iterator[Problem]:
    field = "preset" if student.preset is not None else "layers"
    whose = "the teacher" if student.source is None else "the student's source"
    wanted = _wanted(student, origin_layers, stages)
    if isinstance(wanted, int) and wanted < len(stages):
        yield Problem(
            "/student/layers",
            f"found {wanted}; {whose} has {len(stages)} stages, each of which keeps a block at least: "
            f"{len(stages)} to {origin_layers} are allowed",
        )
    if isinstance(wanted, tuple) and stages and (missing := missing_firsts(stages, wanted)):
        yield Problem(
            "/student/layers",
            f"found no block {missing[0]}; the first block of each stage has to stay, as it makes the shape that the "
            f"others read: {', '.join(map(str, missing_firsts(stages, ())))}",
        )
    if isinstance(wanted, tuple) and wanted[-1] >= origin_layers:
        yield Problem(f"/student/{field}", f"found layer {wanted[-1]}; {whose} has the layers 0 to {origin_layers - 1}")
    if isinstance(wanted, int) and wanted > origin_layers:
        named = f"{student.preset}, which has {wanted} layers" if student.preset is not None else f"{wanted}"
        yield Problem(
            f"/student/{field}",
            f"found {named}; {whose} has {origin_layers} layers, so 1 to {origin_layers} are allowed",
        )


def _width(student: Student, origin: ModelFacts) -> Iterator[Problem]:
    preset = None if student.preset is None else PRESETS[student.preset]
    width = student.hidden_size or (preset.hidden_size if preset else origin.hidden_size)
    field = "preset" if preset else "hidden_size"
    if width > origin.hidden_size:
        yield Problem(
            f"/student/{field}", f"found a width of {width}; the teacher's is {origin.hidden_size}, at most that"
        )
        return
    heads = student.heads or (preset.heads if preset else _default_heads(width, origin))
    if width % heads:
        yield Problem(
            "/student/heads" if student.heads else f"/student/{field}",
            f"found a width of {width} and {heads} heads, which does not divide it; "
            f"allowed, for example: {_divisors(width)}",
        )
        return
    inner = student.intermediate_size or (preset.intermediate_size if preset else 0)
    if inner > origin.intermediate_size > 0:
        yield Problem(
            f"/student/{'preset' if preset else 'intermediate_size'}",
            f"found {inner} neurons; the teacher has {origin.intermediate_size} in each layer, at most that",
        )
    yield from _heads(student, origin, width // heads, field)


def _heads(student: Student, origin: ModelFacts, head: int, field: str) -> Iterator[Problem]:
    family, own = FAMILIES.get(origin.model_type), origin.hidden_size // max(1, origin.heads)
    if family is not None and family.rotary and student.start == "svd" and head != own:
        yield Problem(
            f"/student/{'heads' if student.heads else field}",
            f"found heads of {head}; a {origin.model_type} turns positions into its heads, so that they have to stay "
            f"{own} wide: take a hidden_size that is a multiple of {own}, or start = 'random'",
        )


def _divisors(width: int) -> str:
    return ", ".join(str(count) for count in range(1, min(width, 16) + 1) if width % count == 0)


def _table(student: Student, origin: ModelFacts) -> Iterator[Problem]:
    wanted, own = student.embedding_size, origin.embedding_size or origin.hidden_size
    if wanted is None:
        return
    if not student.recurrent and origin.model_type not in FACTORISED:
        yield Problem(
            "/student/embedding_size",
            f"found {wanted}; in transformers the word table of a {origin.model_type} is as wide as its layers, and a "
            f"student of another build could not be loaded by it; allowed for: {', '.join(FACTORISED)}",
        )
    elif wanted > own:
        yield Problem(
            "/student/embedding_size", f"found {wanted}; the teacher's word table is {own} wide, at most that"
        )
