"""A finished student in use: tokenizers, ONNX Runtime and numpy, nothing of training and no torch."""

from limbeck.formats import Format
from limbeck.runtime.inputs import Question
from limbeck.runtime.predictor import Predictor
from limbeck.runtime.streaming import stream

__all__ = ["Format", "Predictor", "Question", "stream"]
