"""Students are what they were cut from, and folders give back the models that went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from limbeck.config import Student
from limbeck.errors import InvalidConfig, InvalidModel
from limbeck.recurrent import RecurrentConfig, RecurrentForSequenceClassification
from limbeck.students import Blueprint, label_order, student_layers
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.vocabulary import Vocabulary
from tests.tiny import vocabulary as tiny_vocabulary
from tests.tiny import write_tiny_bert

LABELS = ("gui", "networking", "numbers")
TASK = SequenceClassification()
INPUTS = {
    "input_ids": torch.tensor([[2, 40, 41, 3], [2, 42, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}


def whole(size: int = len(tiny_vocabulary())) -> Vocabulary:
    return Vocabulary(np.arange(size), size)


@pytest.mark.parametrize(
    ("layers", "init", "expected"),
    [
        (3, "uniform", (1, 3, 5)),
        (3, "first", (0, 1, 2)),
        (3, "last", (3, 4, 5)),
        (3, "skip", (0, 2, 4)),
        (4, "uniform", (0, 2, 3, 5)),
        (6, "uniform", (0, 1, 2, 3, 4, 5)),
        ((0, 5), None, (0, 5)),
        (None, "uniform", (1, 3, 5)),
        # Where nobody says it: every n-th of half of them or more, and evenly spread ones of fewer.
        (None, None, (0, 2, 4)),
        (3, None, (0, 2, 4)),
        (4, None, (0, 1, 3, 4)),
        (2, None, (2, 5)),
        (1, None, (5,)),
        (6, None, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers_are_chosen_as_documented(layers: Any, init: Any, expected: tuple[int, ...]) -> None:
    assert student_layers(Student(layers=layers, init=init), 6) == expected


@pytest.mark.parametrize(("layers", "allowed"), [(7, "1 to 6"), ((1, 6), "0 to 5")])
def test_a_student_deeper_than_its_teacher_is_refused(layers: Any, allowed: str) -> None:
    with pytest.raises(InvalidConfig, match=allowed) as caught:
        student_layers(Student(layers=layers), 6)
    assert caught.value.problems[0].pointer == "/student/layers"


def test_the_student_at_step_0_is_the_teachers_layers(tmp_path: Path) -> None:
    """Guards the whole method: a student from the wrong layers, or a new head, trains all the same, only worse.

    The reference is computed by hand: the teacher with the layers that are left out taken from its list.
    """
    blueprint = Blueprint.read(write_tiny_bert(tmp_path, labels=LABELS), TASK, LABELS, whole())
    teacher = blueprint.load_teacher(keep_head=True).eval()
    student = blueprint.cut(teacher.state_dict(), (1, 3)).eval()
    encoder = teacher.bert.encoder
    encoder.layer = torch.nn.ModuleList([encoder.layer[1], encoder.layer[3]])
    assert student.config.num_hidden_layers == 2
    assert torch.equal(student(**INPUTS).logits, teacher(**INPUTS).logits)


def test_all_layers_give_the_teacher_itself(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path, labels=LABELS)
    blueprint = Blueprint.read(folder, TASK, LABELS, whole())
    teacher = blueprint.load_teacher(keep_head=True).eval()
    student = blueprint.cut(teacher.state_dict(), range(4)).eval()
    original = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert torch.equal(student(**INPUTS).logits, original(**INPUTS).logits)


def test_training_on_part_of_the_vocabulary_changes_nothing_else(tmp_path: Path) -> None:
    """Guards the compact vocabulary: the same logits from compact ids, and the unused rows back in the saved folder."""
    folder = write_tiny_bert(tmp_path / "teacher", labels=LABELS)
    vocabulary = Vocabulary(np.array([0, 1, 2, 3, 4, 40, 41, 42]), len(tiny_vocabulary()))
    blueprint = Blueprint.read(folder, TASK, LABELS, vocabulary)
    teacher = blueprint.load_teacher(keep_head=True).eval()
    compact = dict(INPUTS, input_ids=torch.from_numpy(np.searchsorted(vocabulary.kept, INPUTS["input_ids"].numpy())))
    original = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert teacher.get_input_embeddings().weight.shape[0] == 8
    assert torch.equal(teacher(**compact).logits, original(**INPUTS).logits)
    blueprint.save(teacher, tmp_path / "saved")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert saved.config.id2label == dict(enumerate(LABELS))
    for name, value in original.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


def test_a_family_that_cannot_be_taken_apart_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InvalidModel, match=r"'gpt2'.*bert, distilbert"):
        Blueprint.read(tmp_path, TASK, LABELS, whole())


def test_a_teacher_with_the_labels_in_another_order_answers_in_the_data_sets(tmp_path: Path) -> None:
    """Guards against soft labels of the wrong classes, which look like any others."""
    folder = write_tiny_bert(tmp_path, labels=("Numbers", "gui", "networking"))
    teacher = Blueprint.read(folder, TASK, LABELS, whole()).load_teacher(keep_head=True).eval()
    original = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(teacher(**INPUTS).logits, original(**INPUTS).logits[:, [1, 2, 0]])
    assert teacher.config.id2label == dict(enumerate(LABELS))


def test_a_new_head_is_not_that_of_other_labels(tmp_path: Path) -> None:
    """Guards a fine-tuning, and a student of the method self, against a start from a head that means something else: of
    as many labels it loads without a word."""
    folder = write_tiny_bert(tmp_path, labels=("negative", "neutral", "positive"))
    teacher = Blueprint.read(folder, TASK, LABELS, whole()).load_teacher(keep_head=False)
    original = AutoModelForSequenceClassification.from_pretrained(folder)
    assert not torch.equal(teacher.get_parameter("classifier.weight"), original.get_parameter("classifier.weight"))
    for name, value in original.base_model.state_dict().items():
        assert torch.equal(teacher.base_model.state_dict()[name], value)


def spoilt(folder: Path, how: str) -> Path:
    """A teacher whose weights are not those that its config.json tells of."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    if how == "more layers":
        config["num_hidden_layers"] = 6
    elif how == "wider layers":
        config["intermediate_size"] = 128
    elif how == "wrapped names":
        weights = {f"_orig_mod.{name}": value for name, value in weights.items()}
    else:
        del weights[how]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("more layers", r"32 are missing.*encoder\.layer\.4\."),
        ("wider layers", r"encoder\.layer\.0\.intermediate\.dense|could not be loaded"),
        ("wrapped names", r"bert\.embeddings\."),
        ("bert.encoder.layer.1.attention.self.query.weight", r"1 are missing.*layer\.1\.attention\.self\.query"),
    ],
)
def test_a_teacher_is_never_partly_random(tmp_path: Path, how: str, named: str, keep_head: bool) -> None:
    """Guards teachers whose files lack weights: transformers draws them at random and says so in its log alone, and the
    job ends with a student of noise."""
    folder = spoilt(write_tiny_bert(tmp_path, labels=LABELS), how)
    with pytest.raises(InvalidModel, match=named):
        Blueprint.read(folder, TASK, LABELS, whole()).load_teacher(keep_head=keep_head)


def test_an_encoder_without_its_pooler_is_whole(tmp_path: Path) -> None:
    """Guards RoBERTa and many more, which are published without one; a kept head reads it, and needs it."""
    folder = write_tiny_bert(tmp_path, labels=LABELS)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    blueprint = Blueprint.read(folder, TASK, LABELS, whole())
    teacher = blueprint.load_teacher(keep_head=False).state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in kept.items() if name.startswith("bert."))
    with pytest.raises(InvalidModel, match=r"bert\.pooler\.dense"):
        blueprint.load_teacher(keep_head=True)


def test_labels_without_names_are_taken_in_their_order() -> None:
    assert label_order(["LABEL_0", "LABEL_1"], ["negative", "positive"]) == [0, 1]
    assert label_order(["negative", "positive"], ["0", "1"]) == [0, 1]


def test_names_count_before_the_order_of_what_names_nothing() -> None:
    """Guards against a teacher whose outputs 1, 0 are read as 0, 1: every answer wrong, and no error."""
    assert label_order(["1", "0"], ["0", "1"]) == [1, 0]
    assert label_order(["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"]) == [1, 0]
    with pytest.raises(InvalidModel):
        label_order(["1", "2"], ["0", "1"])
    with pytest.raises(InvalidModel):
        label_order(["negative", "positive"], ["1", "2"])


def test_labels_that_differ_by_case_alone_stay_two() -> None:
    """Guards against one output for both, and none for the other: a silent half of the answers wrong."""
    assert label_order(["US", "us"], ["us", "US"]) == [1, 0]
    assert label_order(["US", "us", "It"], ["It", "US", "us"]) == [2, 0, 1]
    assert label_order(["Us", "IT"], ["it", "us"]) == [1, 0]
    for found, wanted in ((["US", "us"], ["Us", "uS"]), (["US", "us"], ["us", "it"]), (["us", "it"], ["US", "us"])):
        with pytest.raises(InvalidModel):
            label_order(found, wanted)


@pytest.mark.parametrize(
    "found", [["negative", "positive", "neutral"], ["good", "bad"], ["LABEL_0", "LABEL_1", "LABEL_2"]]
)
def test_a_teacher_of_other_labels_is_refused_naming_both(found: list[str]) -> None:
    with pytest.raises(InvalidModel, match=rf"{found[0]}.*'negative', 'positive'"):
        label_order(found, ["negative", "positive"])


@pytest.mark.parametrize(
    ("kind", "classes", "labels", "loss"),
    [
        ("regression", 1, [[3.0], [-1.0]], F.mse_loss),
        ("multi_label_classification", 3, [[1.0, 0.0, 1.0], [0.0] * 3], F.binary_cross_entropy_with_logits),
        (None, 3, [2, 0], F.cross_entropy),
    ],
)
def test_a_recurrent_student_gives_the_loss_that_transformers_gives(
    kind: str | None, classes: int, labels: Any, loss: Any
) -> None:
    """Guards who trains a student's folder further: a cross-entropy of one number is 0 whatever it is."""
    config: Any = RecurrentConfig(vocab_size=50, embedding_size=8, hidden_size=8, num_labels=classes, problem_type=kind)
    student, wanted = RecurrentForSequenceClassification(config).eval(), torch.tensor(labels)
    with torch.inference_mode():
        found = student(**INPUTS, labels=wanted)
    torch.testing.assert_close(found.loss, loss(found.logits, wanted))
