"""Students of every kind: they start as they should, and transformers reads their folders with the same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from limbeck.batches import Collator, Encoded
from limbeck.config import Student
from limbeck.errors import InvalidConfig
from limbeck.export import export_onnx, rows_of
from limbeck.families import family_of
from limbeck.model_folder import config_facts, model_facts
from limbeck.pruning import most_important, neuron_importance
from limbeck.shapes import FACTORISED
from limbeck.student_plan import StudentPlan
from limbeck.students import Blueprint, read_config
from limbeck.tasks.sequence_classification import SequenceClassification
from limbeck.tokenizing import load_tokenizer
from limbeck.trimming import kept_ids, trimmed
from limbeck.vocabulary import Vocabulary
from tests.families import FAMILIES, LABELS, write_tiny
from tests.limbeck.test_families import answers, answers_of_plain_transformers, prepared, split
from tests.tiny import vocabulary as tiny_vocabulary

TASK = SequenceClassification()


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("bert", tmp_path_factory.mktemp("bert"))


def plan_of(blueprint: Blueprint, **options: Any) -> StudentPlan:
    return StudentPlan.of(Student(**options), blueprint, seed=5)


def save(plan: StudentPlan, student: Any, folder: Path) -> None:
    tokenizer = load_tokenizer(plan.origin.folder, read_config(plan.origin.folder))
    if plan.trimmed:
        tokenizer = trimmed(tokenizer, plan.origin.vocabulary.kept)
    plan.save(student, folder)
    tokenizer.save_pretrained(folder)


VARIANTS: dict[str, dict[str, Any]] = {
    "narrow": {"layers": 2, "hidden_size": 8, "intermediate_size": 12},
    "fewer neurons": {"layers": [0, 3], "intermediate_size": 20},
    "random": {"layers": 2, "start": "random", "hidden_size": 8},
    "factorised": {"layers": 2, "embedding_size": 4 + 4},
    "narrow and factorised": {"layers": 2, "hidden_size": 8, "embedding_size": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_student_of_another_shape_is_what_plain_transformers_reads(
    folder: Path, tmp_path: Path, variant: str
) -> None:
    """Guards the chain from start to folder: a shape that config.json does not tell of, rows of the word table that
    were left out of training, a start that differs each time (and with it the baseline from the student)."""
    options = VARIANTS[variant]
    if "embedding_size" in options and folder.name not in FACTORISED:
        pytest.skip("its word table is as wide as its layers")
    blueprint, data = prepared(folder)
    teacher = blueprint.load_teacher(keep_head=True).state_dict()
    plan = plan_of(blueprint, **options)
    student = plan.start(teacher)
    again = plan.start(teacher).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())
    expected = answers(student, data)
    torch.testing.assert_close(answers(plan.build(student.state_dict()), data), expected)
    save(plan, student, tmp_path)
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path), expected)
    facts = model_facts(tmp_path)
    assert (facts.layers, facts.hidden_size) == (2, options.get("hidden_size", 16))
    assert facts.intermediate_size == options.get("intermediate_size", facts.hidden_size * 2)
    if "embedding_size" in options:
        assert (facts.embedding_size or facts.hidden_size) == options["embedding_size"]


def test_a_student_of_the_same_shape_is_cut_and_not_projected(bert: Path) -> None:
    blueprint, data = prepared(bert)
    teacher = blueprint.load_teacher(keep_head=True).state_dict()
    plan = plan_of(blueprint, layers=[1, 2], hidden_size=16, heads=2)
    assert not plan.narrow
    assert torch.equal(answers(plan.start(teacher), data), answers(blueprint.cut(teacher, (1, 2)), data))


def write_doubled(folder: Path) -> BertForSequenceClassification:
    """Write a BERT whose states say everything twice, and return the one of half its width that it stands for."""
    sizes = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3}
    common = {"vocab_size": len(tiny_vocabulary()), "max_position_embeddings": 64, "initializer_range": 0.3, **sizes}
    torch.manual_seed(0)
    small = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, **common)
    )
    large = BertForSequenceClassification(
        BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=32, **common)
    )
    given = small.state_dict()
    # The pooler's tanh does not turn with its basis: small states keep it straight.
    given["bert.pooler.dense.weight"] *= 1e-3
    given["classifier.weight"] *= 1e3
    small.load_state_dict(given)
    made = {}
    for name, value in given.items():
        target = large.state_dict()[name]
        if "embeddings" in name and value.dim() == 2:
            made[name] = value.repeat(1, 2)
        elif name.endswith(("output.dense.weight", "pooler.dense.weight")):
            doubled = value.repeat(2, 1)
            inner = value.shape[1] if "pooler" not in name else 8
            made[name] = torch.zeros_like(target)
            made[name][:, :inner] = doubled / 2 if "pooler" in name else doubled
            if "pooler" in name:
                made[name][:, inner:] = doubled / 2
        elif value.dim() == 2:  # reads hidden states: half of each copy; further rows read nothing
            made[name] = torch.zeros_like(target)
            made[name][: len(value)] = value.repeat(1, 2) / 2
        else:
            made[name] = torch.zeros_like(target)
            made[name][: len(value)] = value
            if len(target) == 2 * len(value) and ("output" in name or "LayerNorm" in name or "pooler" in name):
                made[name][len(value) :] = value
    large.load_state_dict(made)
    write_tiny("bert", folder)
    large.config.id2label = dict(enumerate(LABELS))
    large.config.label2id = {name: i for i, name in enumerate(LABELS)}
    large.save_pretrained(folder)
    return small


def test_what_lies_in_half_of_the_width_is_kept_whole(tmp_path: Path) -> None:
    """Guards every factor of the projection (norms, scores, halves of the bases), which a student would train over: a
    teacher that says everything twice is the same model at half its width, and the start has to find it."""
    small = write_doubled(tmp_path)
    blueprint, data = prepared(tmp_path)
    teacher = blueprint.load_teacher(keep_head=True)
    vocabulary = blueprint.vocabulary
    table = small.get_input_embeddings()
    expected = answers(teacher, data)
    small.set_input_embeddings(
        torch.nn.Embedding.from_pretrained(table.weight[torch.from_numpy(vocabulary.kept)], padding_idx=0)
    )
    torch.testing.assert_close(answers(small, data), expected, atol=1e-4, rtol=1e-4)
    student = plan_of(blueprint, layers=2, hidden_size=8).start(teacher.state_dict())
    assert (student.config.num_attention_heads, student.config.intermediate_size) == (2, 16)
    torch.testing.assert_close(answers(student, data), expected, atol=2e-3, rtol=2e-3)


def test_narrower_heads_are_the_best_of_their_width(bert: Path) -> None:
    """Guards the scale of the scores: heads that really are of half their width lose nothing when they become so."""
    blueprint, data = prepared(bert)
    teacher = blueprint.load_teacher(keep_head=True)
    weights = teacher.state_dict()
    for name, value in weights.items():
        if ".attention.self." in name:  # heads of 8: the second half of each says nothing
            value.view(2, 8, -1)[:, 4:] = 0
    expected = answers(blueprint.build(4, weights), data)
    student = plan_of(blueprint, layers=4, heads=4).start(weights)
    assert torch.allclose(answers(student, data), expected, atol=1e-4)


def test_words_that_no_text_uses_are_projected_as_all_others(bert: Path, tmp_path: Path) -> None:
    """Guards rows that training leaves out, which no figure of the job sees: of other directions, or of none, they mean
    nothing to the narrow layers that whoever serves the student asks."""
    blueprint, _ = prepared(bert)
    plan = plan_of(blueprint, layers=2, hidden_size=8)
    save(plan, plan.start(blueprint.load_teacher(keep_head=True).state_dict()), tmp_path)
    name = "bert.embeddings.word_embeddings.weight"
    wide, narrow = (load_file(folder / "model.safetensors")[name].double() for folder in (bert, tmp_path))
    seen = torch.zeros(len(wide), dtype=torch.bool)
    seen[torch.from_numpy(blueprint.vocabulary.kept)] = True
    directions = torch.linalg.lstsq(wide[seen], narrow[seen]).solution
    assert 0 < int(seen.sum()) < len(wide)
    torch.testing.assert_close(narrow[~seen], wide[~seen] @ directions, atol=1e-4, rtol=1e-4)


def test_words_that_no_text_uses_begin_at_random_where_all_do(bert: Path, tmp_path: Path) -> None:
    """Guards a random start against the teacher's rows, which stand for nothing there, and against another draw."""
    blueprint, _ = prepared(bert)
    plan = plan_of(blueprint, layers=2, start="random")
    student = plan.start(blueprint.load_teacher(keep_head=True).state_dict())
    name = "bert.embeddings.word_embeddings.weight"
    unseen = np.setdiff1d(np.arange(blueprint.vocabulary.full_size), blueprint.vocabulary.kept)
    tables = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        save(plan, student, folder)
        tables.append(load_file(folder / "model.safetensors")[name][torch.from_numpy(unseen)])
    assert torch.equal(*tables)
    assert float(tables[0].std()) == pytest.approx(0.02, rel=0.05)
    assert float(tables[0].mean()) == pytest.approx(0, abs=0.002)


def test_a_recurrent_student_starts_from_the_teachers_words(bert: Path) -> None:
    """Guards what it has of the teacher, which a random table would be trained in the place of; fine-tuned ones."""
    blueprint, _ = prepared(bert)
    teacher = blueprint.load_teacher(keep_head=True).state_dict()
    table = teacher["bert.embeddings.word_embeddings.weight"].add_(1)
    found = plan_of(blueprint, architecture="bigru", hidden_size=8).start(teacher)
    assert torch.equal(found.get_input_embeddings().weight, table)
    drawn = plan_of(blueprint, architecture="bigru", hidden_size=8, start="random").start(teacher)
    assert not torch.equal(drawn.get_input_embeddings().weight, table)


@pytest.mark.parametrize(("own", "matched"), [(2, (1, 3)), (3, (0, 1, 3)), (4, (0, 1, 2, 3)), (6, ())])
def test_layers_of_another_model_stand_for_evenly_spread_ones(
    bert: Path, tmp_path: Path, own: int, matched: tuple[int, ...]
) -> None:
    """Guards methods that compare layers, for a student that was not cut from its teacher; one that is deeper has no
    such layers. All of its own are taken where nothing is said."""
    teacher = prepared(bert)[0]
    config = BertConfig(num_hidden_layers=own, hidden_size=16, num_attention_heads=2, intermediate_size=32)
    source = replace(teacher, config=config, folder=tmp_path)
    plan = StudentPlan.of(Student(source="some/model"), teacher, source=source, seed=1)
    assert (plan.shape.layers, plan.matched) == (tuple(range(own)), matched)


def batches_of(data: Encoded, size: int) -> list[Any]:
    collate = Collator(data, 0, torch.device("cpu"))
    return [collate(rows) for rows in np.array_split(np.arange(len(data)), len(data) // size)]


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels)


def test_importance_is_what_the_loss_would_change_by(bert: Path) -> None:
    """Guards the derivative, its sum over tokens and its independence of the batch size: a neuron made a little weaker
    changes the loss of one text by its share."""
    blueprint, data = prepared(bert)
    teacher = blueprint.load_teacher(keep_head=True).double()
    found = neuron_importance(teacher, batches_of(data, 1), loss_of)
    assert found.shape == (4, 32)
    torch.testing.assert_close(neuron_importance(teacher, batches_of(data, 6), loss_of), found, atol=1e-5, rtol=1e-4)
    weight = teacher.bert.encoder.layer[2].output.dense.weight
    step, neuron = 1e-6, 7
    expected = 0.0
    with torch.no_grad():
        for batch in batches_of(data, 1):
            before = loss_of(teacher, batch)
            weight[:, neuron] *= 1 - step
            expected += abs(float(loss_of(teacher, batch) - before)) / step
            weight[:, neuron] /= 1 - step
    assert float(found[2, neuron]) == pytest.approx(expected, rel=1e-3)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_pruning_takes_what_does_nothing(folder: Path) -> None:
    """Guards which neurons go: with a quarter that do nothing, wherever they are, the pruned student is the teacher."""
    blueprint, data = prepared(folder)
    teacher = blueprint.load_teacher(keep_head=True)
    family = family_of(teacher.config.model_type)
    found = teacher.base_model.get_submodule(family.layers)
    layers = [found] if family.shared else list(found)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers:
            layer.get_submodule(family.neurons[1]).weight[:, torch.randperm(32, generator=draw)[:8]] = 0
    batches = [
        Collator(data, teacher.config.pad_token_id, torch.device("cpu"))(rows)
        for rows in np.array_split(np.arange(len(data)), 4)
    ]
    neurons = most_important(neuron_importance(teacher, batches, loss_of), 24)
    plan = plan_of(blueprint, layers=4, prune=0.25)
    assert plan.shape.intermediate_size == 24
    student = plan.start(teacher.state_dict(), neurons)
    torch.testing.assert_close(answers(student, data), answers(teacher, data), atol=1e-4, rtol=1e-4)


def test_a_trimmed_student_answers_as_before(folder: Path, tmp_path: Path) -> None:
    """Guards ids: of words, of special tokens in tokenizer and configuration, of padding; and that a text with words
    that nobody had seen is still read."""
    config = read_config(folder)
    tokenizer = load_tokenizer(folder, config)
    blueprint, data = prepared(folder)
    whole = rows_of(data, blueprint.vocabulary.kept)
    used = np.unique(np.concatenate([blueprint.vocabulary.kept, *(np.array(row.ids) for row in whole)]))
    vocabulary = Vocabulary(kept_ids(tokenizer, used), config.vocab_size)
    blueprint = Blueprint.read(folder, TASK, LABELS, vocabulary)
    plan = plan_of(blueprint, layers=2, vocabulary="trimmed")
    student = plan.start(blueprint.load_teacher(keep_head=True).state_dict())
    save(plan, student, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    asked = list(split().texts)
    before, now = (one(asked, truncation=True, max_length=64)["input_ids"] for one in (tokenizer, read))
    assert [vocabulary.kept[row].tolist() for row in now] == before
    assert len(read) == len(vocabulary) < len(tokenizer)
    compact = vocabulary.compact(_encoded(before, data))
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path), answers(student, compact))
    saved = read_config(tmp_path)
    assert (saved.vocab_size, saved.pad_token_id) == (len(vocabulary), read.pad_token_id)
    unseen = read("Zyzzyva quokkas jump 漢字 ☃", "again")["input_ids"]
    assert max(unseen) < len(vocabulary)
    assert model_facts(tmp_path).parameters == sum(p.numel() for p in student.parameters())


def test_a_trimmed_tokenizer_still_reads_byte_by_byte() -> None:
    """Guards Gemma's tokenizer, which mmBERT has: what it has no piece for would be unknown to the student."""
    pieces = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>", unk_token="<unk>")
    kept = kept_ids(tokenizer, np.array([0, pieces.index("a")]))
    small = trimmed(tokenizer, kept)
    for text in ("ab", "a漢"):
        assert kept[small(text)["input_ids"]].tolist() == tokenizer(text)["input_ids"]


def _encoded(ids: list[list[int]], like: Encoded) -> Encoded:
    starts = np.concatenate(([0], np.cumsum([len(row) for row in ids]))).astype(np.int64)
    return Encoded(np.concatenate([np.array(row, dtype=np.int32) for row in ids]), None, starts, like.labels)


@pytest.mark.parametrize("architecture", ["bilstm", "bigru"])
@pytest.mark.parametrize("vocabulary", ["full", "trimmed"])
def test_a_recurrent_student_is_saved_exported_and_read_again(
    bert: Path, tmp_path: Path, architecture: str, vocabulary: str
) -> None:
    """Guards the backward direction against padding (a batch answers as its texts do alone), folder and graph."""
    blueprint, data = prepared(bert)
    teacher = blueprint.load_teacher(keep_head=True).state_dict()
    plan = plan_of(
        blueprint, architecture=architecture, hidden_size=12, layers=2, embedding_size=8, vocabulary=vocabulary
    )
    if vocabulary == "trimmed":
        tokenizer = load_tokenizer(bert, read_config(bert))
        kept = kept_ids(tokenizer, blueprint.vocabulary.kept)
        data = Vocabulary(kept, blueprint.vocabulary.full_size).compact(
            _encoded([list(row.ids) for row in rows_of(data, blueprint.vocabulary.kept)], data)
        )
        blueprint = Blueprint.read(bert, TASK, LABELS, Vocabulary(kept, blueprint.vocabulary.full_size))
        teacher = blueprint.load_teacher(keep_head=True).state_dict()
        plan = plan_of(blueprint, **plan.options.model_dump(exclude_unset=True))
    student = plan.start(teacher)
    expected = answers(student, data)
    alone = torch.cat(
        [student(**Collator(data, 0, torch.device("cpu"))(np.array([i])).inputs).logits for i in range(6)]
    )
    torch.testing.assert_close(alone.detach(), expected[:6])
    assert plan.matched == ()
    save(plan, student, tmp_path)
    torch.testing.assert_close(answers_of_plain_transformers(tmp_path), expected)
    torch.testing.assert_close(answers(plan.build(student.state_dict()), data), expected)
    rows = rows_of(data, None if plan.trimmed else blueprint.vocabulary.kept)
    cards = export_onnx(tmp_path, ("onnx",), rows, data, task=SequenceClassification(), seed=1).cards
    assert cards[0].max_logit_difference < 1e-4
    assert model_facts(tmp_path).layers == 2


class TokenLabels(SequenceClassification):
    """Stands for any task whose answers are not one for a text."""

    def model_class(self) -> Any:
        return AutoModelForTokenClassification


def test_a_recurrent_student_is_refused_where_tokens_are_answered(bert: Path) -> None:
    """Guards against a network with one answer for a text being trained as if it had one for each token."""
    blueprint = replace(prepared(bert)[0], task=TokenLabels())
    with pytest.raises(InvalidConfig, match="answers for a text as a whole") as caught:
        plan_of(blueprint, architecture="bilstm")
    assert caught.value.problems[0].pointer == "/student/architecture"


def test_facts_of_a_configuration_name_heads_and_neurons(folder: Path) -> None:
    """Guards preflight over HTTP, which knows config.json alone: 0 heads would divide any width."""
    facts = model_facts(folder)
    assert (facts.heads, facts.intermediate_size) == (2, 32)
    assert (
        config_facts({"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8}, parameters=0, bytes=0).heads == 0
    )
