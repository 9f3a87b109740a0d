"""Teachers and texts as files, each made once in ``benchmarks/.cache/training``.

Only the teacher of SST-2 has learnt its task, for the accuracy. Speed does not ask what a label says: elsewhere the
labels are what the teacher itself answers (its head shifted so that each of two classes has half of the texts), so that
the engine accepts it as a teacher without hours of fine-tuning.
"""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.order import write_tokens
from benchmarks.report import ROOT
from benchmarks.training.workloads import TEACHERS, WORKLOADS, Workload

CACHE = ROOT / "benchmarks" / ".cache" / "training"
#: Changes when the files are made otherwise.
_VERSION = 1
_DRAW = 20_260_101
_FINETUNE = {"limit": 4000, "epochs": 2, "learning_rate": 5e-5}

Row = dict[str, str]


@dataclass(frozen=True)
class Part:
    """Examples as both sides read them."""

    folder: Path  #: for the engine: ``train``, ``validation`` and ``test`` as JSON lines
    tokens: Mapping[str, Path]  #: for the others: ``train`` and ``test``
    lengths: NDArray[np.int64]  #: of the training examples, in tokens


class Files:
    """Makes them, or finds them made."""

    def __init__(self, data: Path, cache: Path = CACHE) -> None:
        self.data, self.cache = data, cache

    def teacher(self, workload: Workload, *, dropout: bool = True) -> Path:
        """The teacher's folder; without dropout for the check that all trainers do the same."""
        name = workload.teacher if workload.own_labels else f"{workload.teacher}-{workload.texts}"
        folder = self.cache / f"teacher-{name}-{_VERSION}{'' if dropout else '-no-dropout'}"
        if not (folder / "model.safetensors").exists():
            new = folder.with_name(f"{folder.name}-new")
            shutil.rmtree(new, ignore_errors=True)
            if not dropout:
                _without_dropout(self.teacher(workload), new)
            elif workload.own_labels:
                self._fine_tuned(new)
            else:
                self._balanced(workload, new)
            new.rename(folder)
        return folder

    def part(self, workload: Workload, examples: int, *, held: int = 64, draw: int = 0) -> Part:
        """``examples`` training texts whose lengths are spread as those of the whole split are, and ``held`` others."""
        folder = self.cache / "parts" / f"{workload.name}-{examples}-{held}-{draw}-{_VERSION}"
        teacher = self.teacher(workload)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            rows = self._rows(workload)
            lengths = np.diff(tokenised(teacher, rows, workload.max_length)[2])
            train = spread(lengths, examples, seed=_DRAW + draw)
            rest = np.setdiff1d(np.arange(len(rows)), train)
            kept = np.random.default_rng(_DRAW + draw).permutation(rest)[:held]
            splits = {"train": [rows[one] for one in train], "validation": [rows[one] for one in kept]}
            splits["test"] = self._rows(workload, "validation") if workload.own_labels else splits["validation"]
            self._write(workload, splits, folder, teacher)
        with np.load(folder / "tokens" / "train.npz") as found:
            sizes = np.diff(found["starts"])
        return Part(folder / "texts", {one: folder / "tokens" / f"{one}.npz" for one in ("train", "test")}, sizes)

    def _write(self, workload: Workload, splits: Mapping[str, list[Row]], folder: Path, teacher: Path) -> None:
        names = _labels(teacher)
        for name, rows in splits.items():
            coded = tokenised(teacher, rows, workload.max_length)
            if not workload.own_labels:
                answered = _answers(teacher, coded).argmax(1)
                rows = [{**row, "label": names[int(one)]} for row, one in zip(rows, answered, strict=True)]
            path = folder / "texts" / f"{name}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            labels = np.array([names.index(row["label"]) for row in rows], np.int64)
            write_tokens(folder / "tokens" / f"{name}.npz", *coded, labels)
        (folder / "complete").touch()

    def _rows(self, workload: Workload, split: str = "train") -> list[Row]:
        """The data set's texts, each once."""
        seen: dict[tuple[str, ...], Row] = {}
        with gzip.open(self.data / workload.texts / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                found = json.loads(line)
                row = {name: found[name] for name in ("text", "text_pair", "label") if name in found}
                seen.setdefault(tuple(row[name] for name in ("text", "text_pair") if name in row), row)
        rows = list(seen.values())
        return rows if workload.tokens is None else _joined(rows, workload.tokens)

    def _fine_tuned(self, folder: Path) -> None:
        """The built-in encoder, fine-tuned on 4,000 sentences; not part of any measured time."""
        from limbeck.config import DistillConfig
        from limbeck.engine import distill

        print("Fine-tuning the teacher of SST-2 (some minutes, once)", file=sys.stderr, flush=True)
        dataset = {"source": f"path:{self.data / 'sst2_glue'}", "limit": _FINETUNE["limit"]}
        tuned = {name: _FINETUNE[name] for name in ("epochs", "learning_rate")}
        document = {
            "teacher": {"source": "builtin:minilm-l6", "finetune": {"epochs": 1, "learning_rate": 5e-5}},
            "dataset": {**dataset, "splits": {"train": "train", "validation": None, "test": "validation"}},
            "student": {"layers": 6},
            "method": "none",
            "training": {**tuned, "seed": 0, "max_length": 128},
            "evaluation": {"baseline": False, "hard_samples": False},
            "export": [],
        }
        work = folder.with_name(f"{folder.name}-work")
        shutil.copytree(distill(DistillConfig.parse(document), work).student, folder)
        shutil.rmtree(work)

    def _balanced(self, workload: Workload, folder: Path) -> None:
        """A teacher that answers each of two classes for half of the texts."""
        import torch
        from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

        shutil.copytree(self.teacher(WORKLOADS["sst2"]), folder)  # with its tokeniser
        shape = TEACHERS[workload.teacher]
        if shape is not None:
            torch.manual_seed(0)
            (folder / "limbeck.json").unlink(missing_ok=True)
            BertForSequenceClassification(BertConfig(**shape, num_labels=2)).save_pretrained(folder)
        answers = _answers(folder, tokenised(folder, self._rows(workload)[:256], workload.max_length))
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
        with torch.no_grad():
            model.classifier.bias[1] -= float(np.median(answers[:, 1] - answers[:, 0]))
        model.save_pretrained(folder)


def spread(lengths: NDArray[np.int64], count: int, *, seed: int) -> NDArray[np.int64]:
    """``count`` places whose lengths are spread as all are: one drawn from each of as many equal parts by length."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    edges = np.linspace(0, len(order), count + 1).astype(int)
    return draw.permutation([order[draw.integers(low, high)] for low, high in itertools.pairwise(edges)])


def _joined(rows: Sequence[Row], tokens: int) -> list[Row]:
    """Texts of at least so many tokens, from as many sentences as have that many words."""
    found, words = [], ""
    for row in rows:
        words = f"{words} {row['text']}"
        if len(words.split()) >= tokens:
            found.append({"text": words.strip(), "label": row["label"]})
            words = ""
    return found


def tokenised(
    teacher: Path, rows: Sequence[Row], max_length: int
) -> tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int64]]:
    """Ids, segments and starts of the rows, by the teacher's tokeniser, cut where the engine cuts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    coded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=max_length)
    starts = np.cumsum([0, *map(len, coded["input_ids"])])
    ids, segments = (
        np.fromiter(itertools.chain.from_iterable(coded[name]), kind, int(starts[-1]))
        for name, kind in (("input_ids", np.int32), ("token_type_ids", np.int8))
    )
    return ids, segments, starts


def _labels(teacher: Path) -> list[str]:
    named = json.loads((teacher / "config.json").read_text())["id2label"]
    return [named[str(place)] for place in range(len(named))]


def _answers(teacher: Path, coded: tuple[Any, Any, Any]) -> NDArray[np.float32]:
    """The teacher's logits, (examples, classes)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(teacher).train(False)
    ids, segments, starts = coded
    lengths = np.diff(starts)
    order, found = np.argsort(lengths, kind="stable"), np.empty((len(lengths), 2), np.float32)
    for chosen in np.array_split(order, -(-len(order) // 64)):
        mask = np.arange(lengths[chosen].max()) < lengths[chosen, None]
        places = np.concatenate([np.arange(starts[one], starts[one + 1]) for one in chosen])
        batch = {"attention_mask": mask.astype(np.int64)}
        for name, values in (("input_ids", ids), ("token_type_ids", segments)):
            batch[name] = np.zeros(mask.shape, np.int64)
            batch[name][mask] = values[places]
        with torch.inference_mode():
            found[chosen] = model(**{name: torch.from_numpy(one) for name, one in batch.items()}).logits.numpy()
    return found


def _without_dropout(teacher: Path, folder: Path) -> None:
    shutil.copytree(teacher, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
