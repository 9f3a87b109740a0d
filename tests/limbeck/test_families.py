"""Every family is read, cut, saved and exported: what comes out is made of the teacher's own layers, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import limbeck.families
from limbeck import preflight
from limbeck.batches import Collator, Encoded, encode
from limbeck.config import DistillConfig
from limbeck.data.corpus import Split
from limbeck.errors import InvalidModel
from limbeck.export import export_onnx, onnx_runner, rows_of
from limbeck.families import family_of
from limbeck.loop import train
from limbeck.methods.base import Method
from limbeck.model_folder import model_facts
from limbeck.runtime.encoding import Encoder, pad
from limbeck.runtime.student import StudentFacts
from limbeck.students import Blueprint, read_config
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tasks.token_classification import TokenClassification
from limbeck.tokenizing import load_tokenizer
from limbeck.vocabulary import Vocabulary
from tests.families import FAMILIES, LABELS, LENGTH, texts, write_tiny
from tests.images import FAMILIES as IMAGE_FAMILIES
from tests.limbeck.bench import Bench
from tests.limbeck.test_methods_contract import METHODS

TASK = SequenceClassification()
ROWS = 24


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(request.param, tmp_path_factory.mktemp("family") / request.param)


def split(*, pair: bool = False) -> Split:
    chosen = list(texts()[::6][:ROWS])
    return Split(texts=chosen, pairs=chosen[::-1] if pair else None, labels=[i % 3 for i in range(ROWS)])


def prepared(folder: Path, *, pair: bool = False) -> tuple[Blueprint, Encoded]:
    """The folder's blueprint over a compact vocabulary, and texts in compact ids."""
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config)
    data = encode(tokenizer, split(pair=pair), LENGTH)
    vocabulary = Vocabulary.of(
        [data],
        special=tokenizer.all_special_ids,
        pad_id=tokenizer.pad_token_id,
        full_size=config.vocab_size,
        offset=family_of(config.model_type).offset,
    )
    return Blueprint.read(folder, TASK, LABELS, vocabulary), vocabulary.compact(data)


@torch.inference_mode()
def answers(model: Any, data: Encoded) -> torch.Tensor:
    batch = Collator(data, model.config.pad_token_id, torch.device("cpu"))(np.arange(len(data)))
    logits: torch.Tensor = model.eval()(**batch.inputs).logits
    return logits


@torch.inference_mode()
def answers_of_plain_transformers(folder: Path, *, pair: bool = False) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    asked = split(pair=pair)
    coded = AutoTokenizer.from_pretrained(folder)(
        list(asked.texts), asked.pairs, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
    )
    logits: torch.Tensor = model(**coded).logits
    return logits


def keep_layers(model: Any, layers: tuple[int, ...]) -> Any:
    """The reference, by hand: a model of transformers with the other layers taken out of its list."""
    family = family_of(model.config.model_type)
    if family.shared:
        model.base_model.encoder.config.num_hidden_layers = len(layers)
        return model
    owner, _, name = family.layers.rpartition(".")
    parent = model.base_model.get_submodule(owner)
    setattr(parent, name, torch.nn.ModuleList([getattr(parent, name)[number] for number in layers]))
    return model


def test_every_family_is_tested() -> None:
    assert {*FAMILIES, *IMAGE_FAMILIES} == set(limbeck.families.FAMILIES)


def test_the_names_of_a_family_are_those_of_its_modules(folder: Path) -> None:
    """Guards every fact that methods hook by name: a name that is not there would be found in the middle of a job."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    family = family_of(model.config.model_type)
    found = model.base_model.get_submodule(family.layers)
    layer = found if family.shared else found[1]
    inner, hidden = (layer.get_submodule(name).weight.shape for name in family.neurons)
    assert inner == ((2 if family.gated else 1) * 32, 16)
    assert hidden == (16, 32)
    projected = [layer.get_submodule(name).weight.shape[0] for name in family.projections]
    assert projected == ([48] if len(family.projections) == 1 else [16] * 3)
    assert layer.get_submodule(family.mixing).weight.shape == (16, 16)
    assert model.get_submodule(family.output).weight.shape == (3, 16)


@pytest.mark.parametrize("layers", [(0, 2), (1, 2), (3,), (0, 1, 2, 3)], ids=str)
def test_the_student_at_step_0_is_the_teachers_layers(folder: Path, tmp_path: Path, layers: tuple[int, ...]) -> None:
    """Guards the start of every student, and the kind of attention of each layer, against a reference by hand; and the
    folder, which plain transformers reads with nothing of ours."""
    blueprint, data = prepared(folder)
    teacher = blueprint.load_teacher(keep_head=True)
    torch.testing.assert_close(answers(teacher, data), answers_of_plain_transformers(folder))
    student = blueprint.cut(teacher.state_dict(), layers)
    assert student.config.num_hidden_layers == len(layers)
    expected = answers(keep_layers(blueprint.load_teacher(keep_head=True), layers), data)
    torch.testing.assert_close(answers(student, data), expected, atol=1e-4, rtol=1e-4)
    blueprint.save(student, tmp_path)
    load_tokenizer(folder, read_config(folder)).save_pretrained(tmp_path)
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path), answers(student, data))
    facts = model_facts(tmp_path)
    assert (facts.layers, facts.labels) == (len(layers), LABELS)
    assert facts.parameters == sum(p.numel() for p in student.parameters()) + _unused(blueprint, student)


def test_the_words_of_a_list_are_read_as_those_of_a_text(folder: Path, tmp_path: Path) -> None:
    """Guards taggers of byte-level tokenizers, which know a word's beginning by the blank before it: without one
    ModernBERT, whose tokenizer is of transformers' general class, reads all words as the ends of others."""
    words = "return the window that has the focus".split()
    tokenizer = load_tokenizer(folder, read_config(folder), TokenClassification())
    text = f" {' '.join(words)}" if "Ġ" in "".join(tokenizer.get_vocab()) else " ".join(words)
    expected = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == expected
    tokenizer.save_pretrained(tmp_path)  # what the runtime reads
    assert Tokenizer.from_file(f"{tmp_path}/tokenizer.json").encode(words, is_pretokenized=True).ids == expected


def _unused(blueprint: Blueprint, student: Any) -> int:
    rows = blueprint.vocabulary.full_size - len(blueprint.vocabulary)
    return rows * int(student.get_input_embeddings().weight.shape[1])


def test_pairs_are_read_alike_in_training_and_by_transformers(folder: Path, tmp_path: Path) -> None:
    """Guards the segments: ALBERT's tokenizer does not tell of them by itself, other models do not know them."""
    blueprint, data = prepared(folder, pair=True)
    assert (data.segments is not None) == (getattr(blueprint.config, "type_vocab_size", 0) > 1)
    student = blueprint.cut(blueprint.load_teacher(keep_head=True).state_dict(), (0, 3))
    blueprint.save(student, tmp_path)
    load_tokenizer(folder, read_config(folder)).save_pretrained(tmp_path)
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path, pair=True), answers(student, data))
    named = Encoder.load(tmp_path, StudentFacts(LABELS, LENGTH, pair=True, pad_id=0)).encode(
        list(split().texts), split(pair=True).pairs
    )
    expected = rows_of(data, blueprint.vocabulary.kept)
    assert [list(row.ids) for row in named] == [list(row.ids) for row in expected]
    if data.segments is not None:
        assert [list(row.types) for row in named] == [list(row.types) for row in expected]


def test_every_family_is_exported_and_answers_the_same(folder: Path, tmp_path: Path) -> None:
    """Guards the exported graph of each family against padding, lengths that it was not traced with, positions and
    windows; the gate itself refuses a graph that answers otherwise."""
    blueprint, data = prepared(folder)
    student = blueprint.cut(blueprint.load_teacher(keep_head=True).state_dict(), (0, 3))
    blueprint.save(student, tmp_path)
    rows = rows_of(data, blueprint.vocabulary.kept)
    labelled = replace(data, labels=answers(student, data).argmax(dim=1).numpy())
    card, small = export_onnx(
        tmp_path, ("onnx", "onnx-int8"), rows, labelled, task=SequenceClassification(), seed=1
    ).cards
    assert card.max_logit_difference < 1e-4
    assert card.label_agreement == 1
    assert small.bytes < card.bytes
    assert small.label_agreement > 0.8
    fused = {node.op_type for node in onnx.load(tmp_path / "onnx/model.onnx").graph.node} & {"Attention"}
    assert bool(fused) == family_of(blueprint.config.model_type).fused_export
    exported = onnx_runner(tmp_path, "onnx", threads=1)(pad(rows, blueprint.config.pad_token_id))
    torch.testing.assert_close(torch.from_numpy(exported), answers(student, data), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_trains_every_family_that_it_serves(folder: Path, tmp_path: Path, method: type[Method]) -> None:
    """Guards hooks, dropout and the optimizer in each family: two steps, and the folder answers as what was trained."""
    wanted = {"teacher": f"path:{folder}", "dataset": "someone/data", "student": 2, "method": method().type}
    config = DistillConfig.parse({**wanted, "training": {"max_length": LENGTH}})
    refused = preflight.check(config, teacher=model_facts(folder), labels=LABELS)
    if refused:
        pytest.skip(f"{refused[0].pointer}: {refused[0].detail}")
    blueprint, data = prepared(folder)
    bench = Bench(tmp_path, blueprint, data, data)
    phase = bench.phase(method(), epochs=1, batch_size=12)
    assert phase.steps == 2
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    student = train(phase, bench.run(tmp_path / "run", phase)).model
    # Not the head alone: theseus trains the layers and leaves that as it was.
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    blueprint.save(student, tmp_path / "student")
    load_tokenizer(folder, read_config(folder)).save_pretrained(tmp_path / "student")
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path / "student"), answers(student, data))


def test_a_folder_without_a_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """Guards against a training on unknown tokens alone: transformers makes a tokenizer of special tokens of it."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InvalidModel, match=r"tokenizer knows no word|no tokenizer that") as caught:
        load_tokenizer(tmp_path, read_config(tmp_path))
    assert [one.pointer for one in caught.value.problems] == ["/teacher/source"]


def test_an_albert_of_several_groups_is_refused(tmp_path: Path) -> None:
    """Guards against a cut that would apply the first group's layer in the place of the second's."""
    write_tiny("albert", tmp_path, num_hidden_groups=2)
    with pytest.raises(InvalidModel, match="2 groups of 1 layers"):
        read_config(tmp_path)


def test_a_modernbert_keeps_each_layers_attention(tmp_path: Path) -> None:
    """Guards against a cut whose second layer sees everything because second layers do."""
    blueprint, _ = prepared(write_tiny("modernbert", tmp_path))
    assert blueprint.config.layer_types == ["full_attention", "sliding_attention"] * 2
    weights = blueprint.load_teacher(keep_head=True).state_dict()
    assert blueprint.cut(weights, (0, 2)).config.layer_types == ["full_attention"] * 2
    assert blueprint.cut(weights, (1, 2)).config.layer_types == ["sliding_attention", "full_attention"]
