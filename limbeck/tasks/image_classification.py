"""One label for an image: the losses have no modality, only what is read is another thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from limbeck.tasks._one_label import OneLabelTask

if TYPE_CHECKING:
    from limbeck.batches import Encoded
    from limbeck.data import Split


class ImageClassification(OneLabelTask):
    """Choose one of the data set's labels for an image; teachers and students are ViT, DeiT and ResNet."""

    architecture: ClassVar[str] = "ForImageClassification"
    reads: ClassVar[Literal["text", "image"]] = "image"

    type: Literal["image_classification"] = "image_classification"

    def model_class(self) -> Any:
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    def encode(
        self, tokenizer: Any, split: Split, labels: Sequence[str], max_length: int, poll: Callable[[], None]
    ) -> Encoded:
        """Decode a split; what stands in the tokenizer's place is the model's
        :class:`~limbeck.runtime.images.Preparation`."""
        from limbeck.pictures import encode_pictures

        return encode_pictures(tokenizer, split, poll)
