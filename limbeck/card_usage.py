"""What a model card says of a task, and how to use a student of it: code that runs as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from limbeck.formats import FILES
from limbeck.scorecard import Scorecard


@dataclass(frozen=True, slots=True)
class Words:
    """What a card says about a task."""

    tag: str  #: of the hub's pipelines
    answers: str  #: what it answers with; ``$count`` and ``$labels`` stand for those
    guess: str  #: what it is compared with
    limit: str
    pipeline: str = ""  #: of transformers, where that has one for it
    options: str = ""  #: of its call


#: By the task's type.
TASKS = {
    "sequence_classification": Words(
        "text-classification",
        "It answers with one of $count labels: $labels.",
        "Always answering the most common label gets $majority right.",
        "It gives every text one of its labels, also a text that none of them fits, and its scores are not calibrated:"
        "\n  0.9 does not mean right nine times in ten.",
        "text-classification",
        ", truncation=True",
    ),
    "multi_label": Words(
        "text-classification",
        "It says of each of $count labels whether it applies, which it does at a score of 0.5 and more: $labels.",
        "Always answering the one label that applies most often has $majority.",
        "Its scores are not calibrated: 0.9 does not mean right nine times in ten.",
        "text-classification",
        ", truncation=True, top_k=None",
    ),
    "regression": Words(
        "text-classification",
        "It answers with a number, the score.",
        "Always answering the mean has $majority.",
        "It gives every text a number, also a text of a kind that it never saw, and does not say how sure it is.",
        "text-classification",
        ", truncation=True",
    ),
    "token_classification": Words(
        "token-classification",
        "It gives each token one of $count tags, which make entities: $labels.",
        "Finding no entity at all has $majority.",
        "It knows entities of these types alone, and text behind its longest input is not read. Its scores are not\n"
        "  calibrated: 0.9 does not mean right nine times in ten. Limbeck cuts a text into words as lists of tokens\n"
        "  have them; transformers' pipeline takes the parts of O'Brien or 7:30 for words, which it never learned.",
        "token-classification",
    ),
    "question_answering": Words(
        "question-answering",
        "It answers a question with a span of the context that it is given.",
        "Answering nothing has $majority.",
        "It answers every question, also one that the context does not answer.",
    ),
    "image_classification": Words(
        "image-classification",
        "It answers with one of $count labels: $labels.",
        "Always answering the most common label gets $majority right.",
        "It gives every image one of its labels, also an image that none of them fits, and its scores are not\n"
        "  calibrated: 0.9 does not mean right nine times in ten.",
        "image-classification",
    ),
    "embeddings": Words(
        "feature-extraction",
        "It gives each text a vector of length 1; the cosine of two says how alike their texts are.",
        "Vectors that have nothing to do with their texts have $majority.",
        "A cosine is no probability: which one means alike has to be found on data of one's own.",
    ),
    "masked_lm": Words(
        "fill-mask",
        "It finds tokens of a text that are masked. Fine-tuned, it is the encoder of another task.",
        "Always answering the most frequent token has $majority.",
        "It finds what is frequent in texts like those that it has read, whether it is true or not.",
        "fill-mask",
    ),
}

_WITH_TORCH = """\
```python
${first}from transformers import pipeline

ask = pipeline("$pipeline", model=$model$setting)
print(ask($question$options))
```"""

_QUESTIONS_WITH_TORCH = """\
```python
import torch
${first}from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this/folder")
model = $asked
tokens = tokenizer($texts, return_tensors="pt", truncation="only_second")
with torch.inference_mode():
    found = model(**tokens)
start, end = int(found.start_logits.argmax()), int(found.end_logits.argmax())
print(tokenizer.decode(tokens["input_ids"][0, start : end + 1]))
```"""

_VECTORS_WITH_TORCH = """\
```python
import torch
${first}from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this/folder")
model = $asked
tokens = tokenizer([$texts], return_tensors="pt", padding=True, truncation=True)
with torch.inference_mode():
    states = model(**tokens).last_hidden_state
mask = tokens["attention_mask"].unsqueeze(-1)
pooled = $pooled
print(torch.nn.functional.normalize(pooled, dim=-1))
```$as_well"""
_SENTENCE_TRANSFORMERS = "\n\nThe package sentence-transformers reads the folder as well."
_IMAGES_WITHOUT_TORCH = """

Without torch and transformers (`pip install 'limbeck[runtime]'`), where the folder has `$graph`, images prepared as
they were in training:

```python
from pathlib import Path
from limbeck.runtime import Predictor

student = Predictor.load(Path("this/folder"))
print(student.predict(Path("picture.png")))
```"""
_POOLED = {"mean": "(states * mask).sum(dim=1) / mask.sum(dim=1)", "cls": "states[:, 0]"}

#: What reads a student without some of its heads.
_LOADED = "from fewer_heads import load  # the file beside the weights: transformers has no such shape\n"
#: What transformers has to be told of before it reads a recurrent student.
_RECURRENT = "import recurrent  # the file beside the weights: tells transformers of this kind of model\n"

_WITHOUT_TORCH = """

Without torch and transformers (`pip install 'limbeck[runtime]'`), where the folder has `$graph`:

```python
from pathlib import Path
from limbeck.runtime import Predictor

student = Predictor.load(Path("this/folder"))
print(student.predict($question))
```

With ONNX Runtime alone, likewise:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokens = Tokenizer.from_file("this/folder/tokenizer.json").encode($texts)
named = {
    "input_ids": tokens.ids,
    "attention_mask": tokens.attention_mask,
    "token_type_ids": tokens.type_ids,
}
session = onnxruntime.InferenceSession("this/folder/$graph")
feeds = {one.name: np.array([named[one.name]]) for one in session.get_inputs()}
print(session.run(["logits"], feeds)[0])
```"""


def usage(card: Scorecard, is_student: bool, pair: bool, pooling: str, mask: str) -> str:
    """The section "How to use it"; the arguments are those of :func:`limbeck.modelcard.model_card`."""
    task, vectors = TASKS[card.task], card.task == "embeddings"
    question, texts = '"a text"', '"a text"'
    if pair:
        question, texts = '{"text": "a text", "text_pair": "another"}', '"a text", "another"'
    if card.task == "question_answering":
        question = '{"question": "What is named?", "context": "The river is named Tay."}'
        texts = '"What is named?", "The river is named Tay."'
    if card.task == "masked_lm":
        question = texts = f'"Paris is the {mask} of France."'
    names = {
        "question": question,
        "texts": texts,
        "first": _RECURRENT if card.student.architecture.startswith("Recurrent") else "",
        "model": '"this/folder"',
        "asked": f'{"AutoModel" if vectors else "AutoModelForQuestionAnswering"}.from_pretrained("this/folder")',
        "as_well": _SENTENCE_TRANSFORMERS,
        "graph": FILES[card.exports[0].format] if card.exports else "",
        "pipeline": task.pipeline,
        "options": task.options,
        "pooled": _POOLED[pooling],
        "setting": ', aggregation_strategy="first"' if card.task == "token_classification" else "",
    }
    if card.student.kept_heads is not None:
        loaded = 'load("this/folder")'
        names |= {"first": _LOADED, "model": f'{loaded}, tokenizer="this/folder"', "asked": loaded, "as_well": ""}
    with_torch = _WITH_TORCH if task.pipeline else _QUESTIONS_WITH_TORCH
    if vectors:
        with_torch = _VECTORS_WITH_TORCH
    without_torch = _WITHOUT_TORCH
    if card.task == "image_classification":
        names["question"], without_torch = '"picture.png"', _IMAGES_WITHOUT_TORCH
    if is_student:
        with_torch = f"With torch and transformers, where the folder has `model.safetensors`:\n\n{with_torch}"
    return Template(with_torch + (without_torch if is_student and card.exports else "")).substitute(names)
