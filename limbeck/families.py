"""Where each family of encoders keeps the parts that Limbeck handles.

transformers gives all of them ``base_model`` and ``get_input_embeddings()``; only these names differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.errors import InvalidModel


@dataclass(frozen=True, slots=True)
class Family:
    """Names of modules."""

    layers: str = "encoder.layer"  #: the list of layers, within the base model
    output: str = "classifier"  #: the last linear layer of the classification head, within the whole model
    #: The linear layers that make queries, keys and values of the hidden states, within a layer.
    projections: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")


FAMILIES = {
    "bert": Family(),
    "distilbert": Family(
        layers="transformer.layer", projections=("attention.q_lin", "attention.k_lin", "attention.v_lin")
    ),
    "electra": Family(output="classifier.out_proj"),
    "roberta": Family(output="classifier.out_proj"),
    "xlm-roberta": Family(output="classifier.out_proj"),
}


def family_of(model_type: str) -> Family:
    """
    Raises:
        InvalidModel: the family's layers are not known, so that no student can be cut from it.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise InvalidModel(
            f"The teacher is of the type {model_type!r}, whose layers Limbeck cannot take apart yet; allowed: {known}."
        )
    return family
