"""What a job says about its student. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from limbeck.source_names import BUILTIN_TEACHERS, require_hub, source_name
from limbeck.spec import Spec, is_stored


class Prune(Spec):
    """What is cut out of the layers that a student starts from, least important first."""

    shorthand: ClassVar[str | None] = "neurons"

    neurons: float | None = Field(default=None, gt=0, lt=1)
    """Share of the neurons of every feed-forward part; ``intermediate_size`` shrinks by it. Important is a neuron whose
    absence would change the teacher's loss on training texts, to the first order (Molchanov et al. 2017,
    arXiv:1611.06440)."""
    heads: float | None = Field(default=None, gt=0, lt=1)
    """Share of the attention heads of every layer, by the same measure of what they answer (Michel et al. 2019,
    arXiv:1905.10650); every layer keeps as many. For bert, roberta, xlm-roberta, electra and distilbert. transformers
    has no such shape, so that in torch the student is read by the file ``fewer_heads.py`` beside it; its ONNX forms
    need nothing of this."""

    @model_validator(mode="after")
    def _something(self) -> Prune:
        if self.neurons is None and self.heads is None:
            raise ValueError("name a share of neurons, of heads, or of both")
        return self


class Student(Spec):
    """The small model."""

    shorthand: ClassVar[str | None] = "layers"

    layers: int | tuple[int, ...] | None = None
    """How many layers, or which teacher layers (0-based, in order) the student starts from; of a ResNet its residual
    blocks, counted through its stages, the first of each among them. Default: half of them (all of those of ``source``,
    and with ``self`` and ``fastbert``; one for ``bilstm`` and ``bigru``)."""
    init: Literal["first", "last", "uniform", "skip"] | None = None
    """Which teacher layers a count means: the first ones, the last ones, evenly spread with the last layer in, or
    every n-th from the first on; default: what the method asks for, which for most is ``skip`` where half of the layers
    stay or more, and ``uniform`` where fewer do."""
    preset: Literal["T6", "T3", "T3-small", "T4-tiny", "T12-nano"] | None = None
    """A public size (TextBrewer's), as layers × width: 6 × 768, 3 × 768, 3 × 384, 4 × 312, 12 × 256."""
    hidden_size: int | None = Field(default=None, ge=8, le=8192)
    """Width of the layers, at most the teacher's; of ``bilstm`` and ``bigru`` the units for each direction."""
    intermediate_size: int | None = Field(default=None, ge=1, le=65536)
    """Neurons of every feed-forward part; default: the teacher's share of the width."""
    heads: int | None = Field(default=None, ge=1, le=256)
    """Attention heads; has to divide the width. Default: as wide as the teacher's, where that goes."""
    embedding_size: int | None = Field(default=None, ge=8, le=8192)
    """Width of the word table where it may be narrower than the layers: electra, albert, deberta-v2, bilstm, bigru."""
    start: Literal["svd", "random"] = "svd"
    """What the weights begin as: the teacher's, projected onto its main directions where the student is narrower, or
    ``random`` ones throughout."""
    prune: Prune | None = None
    """What goes from the teacher's layers, by importance."""
    vocabulary: Literal["full", "trimmed"] = "full"
    """``trimmed``: tokens that none of the data set's texts uses go from the student's tokenizer and table. Its texts
    are read as before; a word that none of them had falls to smaller pieces."""
    architecture: Literal["transformer", "bilstm", "bigru"] = "transformer"
    """What the student is built of: layers as the teacher's, or a recurrent network over the teacher's word table."""
    source: str | None = None
    """Another model as the student: a hub name, ``model:mdl_…``, or (library only) ``path:/folder``. Its tokenizer may
    be another than the teacher's where the method takes nothing but the teacher's answers to whole texts: ``kd``,
    ``noise`` and ``none``, for ``sequence_classification``, ``multi_label`` and ``regression``, without
    ``training.augmentation``."""
    revision: str | None = None
    """A commit, tag or branch of ``source`` on the hub."""

    @property
    def recurrent(self) -> bool:
        """Whether it is no transformer."""
        return self.architecture != "transformer"

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return source_name(value, what="student", builtins=BUILTIN_TEACHERS, reference="model:mdl_")

    @field_validator("layers")
    @classmethod
    def _sensible_layers(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(value, int) and not 1 <= value <= 96:
            raise ValueError("a student has 1 to 96 layers")
        if isinstance(value, tuple) and (not value or min(value) < 0 or list(value) != sorted(set(value))):
            raise ValueError("name teacher layers from 0 on, rising, each at most once, e.g. [1, 3, 5]")
        return value

    @model_validator(mode="after")
    def _fields_that_go_together(self, info: ValidationInfo) -> Student:
        widths = ("hidden_size", "intermediate_size", "heads", "embedding_size")
        forbidden: dict[str, tuple[str, ...]] = {}
        if self.source is not None:
            forbidden["source, which has its own size and weights"] = (*widths, "preset", "prune", "start")
        if isinstance(self.layers, tuple) and not is_stored(info):
            forbidden["layers that are named"] = ("init",)
        if self.preset is not None:
            forbidden["preset, which names the size"] = ("layers", "hidden_size", "intermediate_size", "heads", "prune")
        if self.recurrent:
            forbidden[self.architecture] = ("preset", "source", "prune", "heads", "intermediate_size", "init")
        if self.prune is not None:
            shrunk = {"neurons": ("intermediate_size",), "heads": ("hidden_size", "heads")}
            cut = [fields for part, fields in shrunk.items() if getattr(self.prune, part) is not None]
            forbidden["prune, which cuts the teacher's own parts"] = ("start", *(name for one in cut for name in one))
        for what, fields in forbidden.items():
            for field in fields:
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(f"{field} does not go with {what}: leave one of them out")
        if self.recurrent and isinstance(self.layers, tuple):
            raise ValueError(f"a {self.architecture} starts from none of the teacher's layers: give their number")
        if self.revision is not None and self.source is None:
            raise ValueError("revision is one of source, which is not given")
        if not is_stored(info):
            require_hub(self.source or "", revision=self.revision)
        return self
