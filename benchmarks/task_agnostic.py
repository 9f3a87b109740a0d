"""Is a student that is distilled from texts alone a better start than the teacher's layers as they are?

``python -m benchmarks.task_agnostic``: the built-in encoder gets a masked-LM head on texts without labels (half of
SST-2, half of GoEmotions) and is distilled by ``distilbert`` to 3 of its 6 layers on the same texts. This student, and
the same layers cut out of the built-in encoder (every other one, the first among them), are then fine-tuned on 2,000 of
SST-2's sentences alike, and answer its public validation sentences. What is done is kept, so that a run that was cut
off goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.running import CACHE, Teller
from benchmarks.report import ROOT, machine, markdown_table, replace_part, write_json
from limbeck.config import DistillConfig
from limbeck.cutting import cut_weights
from limbeck.engine import distill
from limbeck.scorecard import Estimate, Scorecard
from limbeck.sources import builtin_minilm
from limbeck.students import read_config

PAGE = ROOT / "docs" / "methods.md"
_LAYERS = (0, 2, 4)
_SENTENCES, _DEV = 2000, 872


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_agnostic", description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=12_000, help="texts without labels (default: 12000)")
    parser.add_argument("--epochs", type=int, default=2, help="of the distillation (default: 2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of the fine-tuning (default: 42)")
    parser.add_argument("--no-page", action="store_true", help="leave docs/methods.md as it is")
    chosen = parser.parse_args()
    data = Path(os.environ.get("LIMBECK_TEST_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not data.is_dir():
        print(f"No data: LIMBECK_TEST_DATA names {data}, which is not a folder", file=sys.stderr)
        return 2
    folder = CACHE.parent / "task-agnostic" / f"{chosen.texts}-{chosen.epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    general = _general(folder, data, chosen.texts, chosen.epochs)
    starts = {"distilled from texts": folder / "general" / "output" / "student", "cut": _cut(folder / "cut")}
    cards = {
        name: [_fine_tuned(folder, source, data, seed) for seed in chosen.seeds] for name, source in starts.items()
    }
    command = shlex.join(("python", "-m", "benchmarks.task_agnostic", *sys.argv[1:]))
    text = _report(general, cards, command)
    print(text)
    rows = {name: [_without_place(card, folder) for card in found] for name, found in cards.items()}
    document = {"command": command, "machine": machine(), "general": _without_place(general, folder), "rows": rows}
    write_json("task_agnostic", document)
    if not chosen.no_page:
        replace_part(PAGE, "task_agnostic", text)
    return 0


def _general(folder: Path, data: Path, count: int, epochs: int) -> Scorecard:
    texts = folder / "texts"
    if not texts.exists():
        draw = random.Random(0)
        found = [
            text
            for name in ("sst2_glue", "goemotions")
            for text in draw.sample(sorted({row["text"] for row in _rows(data / name / "train.jsonl.gz")}), count // 2)
        ]
        draw.shuffle(found)
        texts.mkdir()
        (texts / "train.txt").write_text("\n".join(" ".join(text.split()) for text in found), encoding="utf-8")
    document = {
        "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 1, "learning_rate": 1e-4}},
        "dataset": f"path:{texts}",
        "task": "masked_lm",
        "method": "distilbert",
        "student": 3,
        "training": {"epochs": epochs, "learning_rate": 2e-4, "max_length": 64},
        "evaluation": {"baseline": False, "hard_samples": False},
        "export": [],
    }
    return _distilled(document, folder / "general")


def _fine_tuned(folder: Path, source: Path, data: Path, seed: int) -> Scorecard:
    sentences = folder / "sentences"
    if not sentences.exists():
        sentences.mkdir()
        rows = _rows(data / "sst2_glue" / "train.jsonl.gz")
        drawn = random.Random(1).sample(rows, _SENTENCES + _DEV)
        _write(sentences / "train.jsonl", drawn[:_SENTENCES])
        _write(sentences / "validation.jsonl", drawn[_SENTENCES:])
        _write(sentences / "test.jsonl", _rows(data / "sst2_glue" / "validation.jsonl.gz"))
    document = {
        "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 1, "learning_rate": 1e-4}},
        "dataset": f"path:{sentences}",
        "method": "none",
        "student": {"source": f"path:{source}"},
        "training": {"epochs": 3, "learning_rate": 1e-4, "max_length": 64, "seed": seed},
        "evaluation": {"hard_samples": False},
        "export": [],
    }
    return _distilled(document, folder / f"{source.parent.parent.name}-{source.name}-{seed}")


def _distilled(document: Mapping[str, Any], work: Path) -> Scorecard:
    done = work / "output" / "scorecard.json"
    if not done.exists():
        distill(DistillConfig.parse(document), work, callbacks=Teller(work.name))
    return Scorecard.model_validate_json(done.read_text(encoding="utf-8"))


def _cut(folder: Path) -> Path:
    """The built-in encoder's own layers, with nothing learned since."""
    from transformers import AutoModel

    if not folder.exists():
        source = builtin_minilm().path
        config = read_config(source)
        weights = AutoModel.from_pretrained(source).state_dict()
        config.num_hidden_layers = len(_LAYERS)
        student: Any = AutoModel.from_config(config)
        student.load_state_dict(cut_weights(read_config(source), weights, _LAYERS))
        student.save_pretrained(folder)
        for file in source.glob("*token*"):
            shutil.copy(file, folder)
    return folder


def _report(general: Scorecard, cards: Mapping[str, Sequence[Scorecard]], command: str) -> str:
    name = general.main_metric
    rows = [
        [start, *(_shown(card.student.metrics["accuracy"]) for card in found), _mean(found)]
        for start, found in cards.items()
    ]
    seeds = [f"seed {card.seed}" for card in next(iter(cards.values()))]
    jobs = [general, *(card for found in cards.values() for card in found)]
    minutes = sum(sum(card.minutes.values()) for card in jobs)
    models = (("teacher", general.teacher), ("student", general.student))
    figures = ", ".join(
        f"{who} {card.metrics[name].value:.1%} (perplexity {card.metrics['perplexity'].value:.0f})"
        for who, card in models
    )
    return (
        f"`{command}`, {machine()['date']}, {minutes:.0f} minutes on a machine that others used as well (which moves "
        "the minutes and nothing else).\n\n"
        f"Hidden tokens found on held-out texts: {figures}; the most frequent token: {general.dataset.majority:.1%}."
        "\n\n"
    ) + markdown_table(["start of the 3 layers", *seeds, "mean"], rows)


def _without_place(card: Scorecard, folder: Path) -> Any:
    """A card as it is committed: where the machine had the data is nobody's affair."""
    return json.loads(card.model_dump_json().replace(f"{folder}/", ""))


def _shown(found: Estimate) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def _mean(cards: Sequence[Scorecard]) -> str:
    return f"{100 * sum(card.student.metrics['accuracy'].value for card in cards) / len(cards):.1f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
