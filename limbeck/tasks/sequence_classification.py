"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from typing import Any, Literal

from limbeck.tasks._one_label import OneLabelTask


class SequenceClassification(OneLabelTask):
    """Choose one of the data set's labels for a text or a pair of texts."""

    type: Literal["sequence_classification"] = "sequence_classification"

    def model_class(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification
