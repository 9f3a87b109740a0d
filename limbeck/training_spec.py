"""What a job says about how its student is trained. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from limbeck.augmentation import BaseAugmentation, MaskReplace, SentenceShuffle
from limbeck.dataset_spec import Unlabelled
from limbeck.soft_loss import KullbackLeibler, SoftLoss
from limbeck.spec import Spec, type_tag
from limbeck.weighting import SampleWeighting

Augmentation = Annotated[
    Annotated[SentenceShuffle, Tag("sentence_shuffle")]
    | Annotated[MaskReplace, Tag("mask_replace")]
    | Annotated[Unlabelled, Tag("unlabelled")],
    Discriminator(type_tag),
]


class Training(Spec):
    """How the student is trained. The baseline and the student always share this."""

    epochs: int = Field(default=3, ge=1, le=200)
    batch_size: int = Field(default=32, ge=1, le=1024)
    """Examples per optimizer step."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Parts that a batch is cut into, to save memory; the gradient stays the same. ``auto``: a short probe before each
    training finds them: of the parts that fit into memory with the longest examples, the largest that are within 5 % of
    the fastest. What it found is recorded, and kept when the job resumes or is run again."""
    token_budget: int | None = Field(default=None, ge=8, le=1_048_576)
    """Most tokens, padding included, that each device computes at once. A batch with more, one of long texts, is
    computed in as many parts as that takes, and one of short texts whole; the gradient stays the same."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1e-2)
    """Peak learning rate of AdamW."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0; from there it falls linearly to 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_length: int = Field(default=128, ge=8, le=8192)
    """Tokens; longer texts are cut."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 on CUDA, else float32."""
    devices: int = Field(default=1, ge=1, le=64)
    """Processes that share every batch, each with its own GPU; without GPUs they share the cores."""
    hosts: int = Field(default=1, ge=1, le=64)
    """Machines that they are on, as many on each. The worker that has the job is one, idle workers lend theirs; what is
    missing after a while is done without. More than 1 for jobs of the service alone."""
    loss: SoftLoss = KullbackLeibler()
    """How the student's answer is compared with the teacher's."""
    sample_weighting: SampleWeighting | None = None
    """Which examples count more, with mean 1 in a batch; default: all count alike. A baseline is weighted where that
    takes no teacher (``focal``), and a teacher that is fine-tuned never is."""

    augmentation: tuple[Augmentation, ...] = ()
    """More training texts, for the student and the baseline; a teacher is fine-tuned without. One, or a list."""

    @field_validator("hosts")
    @classmethod
    def _as_many_on_each(cls, hosts: int, info: ValidationInfo) -> int:
        devices = info.data.get("devices")
        if devices is not None and devices % hosts:
            allowed = ", ".join(str(count) for count in range(1, devices + 1) if devices % count == 0)
            raise ValueError(f"it has to divide devices ({devices}); allowed: {allowed}")
        return hosts

    @field_validator("augmentation", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping | BaseAugmentation) else value

    @model_validator(mode="after")
    def _labels_where_needed(self) -> Training:
        without = [one.type for one in self.augmentation if not one.has_labels]
        if not without:
            return self
        weighting = self.sample_weighting
        found = [f"loss {self.loss.type!r}"] if self.loss.needs_labels else []
        found += [f"sample_weighting {weighting.type!r}"] if weighting is not None and weighting.needs_labels else []
        if found:
            raise ValueError(
                f"augmentation {without[0]!r} brings texts without labels, which {' and '.join(found)} would need"
            )
        return self

    @model_validator(mode="after")
    def _one_batch(self) -> Training:
        """With what looks at a batch as a whole, a batch cut into parts would have another gradient."""
        intra = f"loss {self.loss.type!r} with intra > 0, which compares the examples of a batch"
        if self.devices > 1 and self.loss.needs_whole_batch:
            raise ValueError(f"devices ({self.devices}) has to be 1 with {intra}")
        if self.gradient_accumulation == 1 and self.token_budget is None:
            return self
        found = []
        if self.loss.needs_whole_batch:
            found.append(intra)
        if self.sample_weighting is not None and self.sample_weighting.by_student:
            found.append(
                f"sample_weighting {self.sample_weighting.type!r}, whose weights hang on the student's answers to "
                "all of a batch"
            )
        if found and self.token_budget is not None:
            raise ValueError(f"token_budget ({self.token_budget}) has to be left out with {' and '.join(found)}")
        if found:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) has to be 1 with {' and '.join(found)}"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        if self.token_budget is None:
            return self
        if self.gradient_accumulation != 1:
            raise ValueError(
                f"token_budget ({self.token_budget}) cuts the batches that need it, and gradient_accumulation "
                f"({self.gradient_accumulation}) cuts all of them: name one of the two"
            )
        if self.token_budget < self.max_length:
            raise ValueError(
                f"token_budget ({self.token_budget}) has to be at least max_length ({self.max_length}), the tokens "
                "that a single text may have"
            )
        return self

    @model_validator(mode="after")
    def _whole_parts(self) -> Training:
        parts, named = self.gradient_accumulation, f"gradient_accumulation ({self.gradient_accumulation})"
        if isinstance(parts, str):  # auto
            parts, named = self.devices, f"devices ({self.devices})"
        elif self.devices > 1:
            parts, named = parts * self.devices, f"devices ({self.devices}) times {named}"
        if self.batch_size % parts:
            raise ValueError(f"{named} has to divide batch_size ({self.batch_size})")
        return self
