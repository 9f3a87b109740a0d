"""What every method has to do. The tests walk the union of ``limbeck/config.py``: a new method is tested unasked."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from limbeck.batches import Collator
from limbeck.config import DistillConfig
from limbeck.criterion import Criterion
from limbeck.loop import train
from limbeck.methods.base import Method
from limbeck.preflight import serves
from limbeck.shapes import OFFERS
from limbeck.tasks._pooling import sentence_vectors
from limbeck.tasks.embeddings import Embeddings
from tests.families import FAMILIES
from tests.limbeck.bench import TASK, Bench
from tests.limbeck.contract import TEXT_TASKS, Ground, methods

METHODS = methods()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"), rows=16)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_two_steps_a_folder_and_the_same_predictions(bench: Bench, tmp_path: Path, method: type[Method]) -> None:
    """Guards the student as a user gets it: what plain transformers loads answers as the model that was trained."""
    phase = bench.phase(method(), epochs=1)
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    student = train(phase, bench.run(tmp_path / "run", phase)).model.eval()
    assert phase.steps == 2
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    bench.blueprint.save(student, tmp_path / "student")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    compact = Collator(bench.validation, 0, torch.device("cpu"))(np.arange(len(bench.validation)))
    kept = torch.from_numpy(bench.blueprint.vocabulary.kept)
    whole = dict(compact.inputs, input_ids=kept[compact.inputs["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**whole).logits, student(**compact.inputs).logits)


@pytest.mark.parametrize("scored", [True, False], ids=["scores", "texts"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_methods_that_serve_embeddings_train_an_encoder(tmp_path: Path, method: type[Method], scored: bool) -> None:
    """Guards vectors under every method: plain ``AutoModel`` loads what was trained, and pools the same."""
    task = Embeddings().for_data(pair=scored)
    if not serves(method(), task, frozenset(OFFERS)):
        pytest.skip("refused in preflight")
    found = Bench.make(tmp_path / "bench", rows=16)
    blueprint = replace(found.blueprint, task=task)
    train_split, validation = found.train, found.validation
    if scored:
        pairs = {"together": 2, "labels": np.repeat(np.linspace(0, 1, 8), 2).astype(np.float32)}
        train_split = replace(found.train.take(np.arange(16)), **pairs)
        validation = train_split
    bench = replace(found, blueprint=blueprint, train=train_split, validation=validation)
    vectors = torch.nn.functional.normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    if not scored:
        validation = task.judged(validation, vectors[: len(validation)].numpy())
    phase = bench.phase(
        method(), task=task, epochs=1, batch_size=4 if scored else 8, teacher_logits=vectors, validation=validation
    )
    before = {name: value.clone() for name, value in phase.models.student.state_dict().items()}
    student = train(phase, bench.run(tmp_path / "run", phase)).model.eval()
    assert phase.steps == 2
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    blueprint.save(student, tmp_path / "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student").eval()
    batch = Collator(train_split, 0, torch.device("cpu"))(np.arange(4)).inputs
    kept = torch.from_numpy(blueprint.vocabulary.kept)
    with torch.inference_mode():
        states = loaded(**dict(batch, input_ids=kept[batch["input_ids"]])).last_hidden_state
        torch.testing.assert_close(sentence_vectors(states, batch["attention_mask"]), task.logits(student(**batch)))


@pytest.mark.parametrize("kind", TEXT_TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_keeps_its_word_in_every_task_of_every_family(tmp_path: Path, family: str, kind: str) -> None:
    """Guards what two of the three do to each other: XLM-R's windows had token types that it does not know, and
    ModernBERT's head of answers has another name than all others'."""
    ground, served = Ground.of(family, kind, tmp_path), 0
    for method in METHODS:
        if ground.serves(method()):
            ground.keep(method(), tmp_path / method.__name__)
            served += 1
    assert served >= 5  # ModernBERT's language models, of which relations are not to be had


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_parts_share_all_steps(method: type[Method]) -> None:
    assert sum(part.share for part in method().parts()) == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_terms_are_finite_named_and_count_known_units(bench: Bench, method: type[Method]) -> None:
    phase = bench.phase(method())
    for part in phase.method.parts():
        objective = phase.method.build(part, phase.models, Criterion(TASK))
        batch = Collator(bench.train, 0, torch.device("cpu"), phase.teacher_logits if part.teacher_logits else None)(
            np.arange(4)
        )
        terms = objective.losses(batch, 0, phase.steps)
        assert terms
        for name, term in terms.items():
            assert torch.isfinite(term.value), name
            assert term.value.shape == (), name
            assert term.unit in batch.counts, name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_methods_are_read_from_their_name_and_survive_json(method: type[Method]) -> None:
    name = method().type
    config = DistillConfig.parse({"teacher": "org/teacher", "dataset": "org/data", "method": name})
    assert config.method == method()
    assert DistillConfig.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_option_is_described(method: type[Method]) -> None:
    """Guards the dashboard's form, which is made of these sentences."""
    schema = method.model_json_schema()
    assert schema["description"]
    assert all("description" in field for name, field in schema["properties"].items() if name != "type")


def test_reading_a_configuration_imports_no_torch() -> None:
    """Guards the API process, which would start seconds later and hold 200 MB more."""
    script = (
        "import sys, limbeck, limbeck.config, limbeck.scorecard, limbeck.callbacks, limbeck.errors, limbeck.recipes\n"
        "limbeck.config.DistillConfig.model_json_schema()\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'onnxruntime'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
