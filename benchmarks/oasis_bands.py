"""Negative, neutral or positive: does a classifier that also reads predicted valence do better than one that does not?

The two-step design of the GAPED study (systems.md 4.4), on OASIS's pictures with the folds of `oasis_valence.py`. Bands
of valence: negative below 3.5, positive from 4.5 on. Accuracy and macro-F1 are over all pictures at once, a mean of the
seeds.

    two-input    picture and predicted valence; for training pictures predicted out of fold (`raymotion crossfit`)
    leaky        the same with the valence that the first model predicts for the pictures that it was trained on
    picture      the same classifier without predicted valence
    threshold    the band of the predicted valence
    majority     the most frequent band of the training pictures

    python benchmarks/oasis_bands.py             # 3 minutes on 2 cores
    python benchmarks/oasis_bands.py --seeds 0
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from oasis_valence import DATA, FOLDS, embeddings, splits_of, vectors, with_split

METHODS = ("two-input", "leaky", "picture", "threshold", "majority")


def answers_of(info: Any, ids: list[str], rows: np.ndarray, column: str) -> np.ndarray:
    """What a trained model says of some pictures, in their order."""
    from raymotion.models.checkpoint_files import ANSWERS
    from raymotion.storage import read_table

    found = {row["sample_id"]: row[column] for row in read_table(f"{info.folder}/{ANSWERS}").to_pylist()}
    return np.array([found[ids[row]] for row in rows])


def train(recipe: str, samples: str, features: str, seed: int, out: Path, **more: Any) -> Any:
    """Trains a recipe; returns the checkpoint."""
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe

    shutil.rmtree(out, ignore_errors=True)
    options = {"data": {"samples": samples, "embeddings": [features]}, "seed": seed, "workers": 0, **more}
    return fit(load_recipe(recipe, options=options), out).info


def with_own_predictions(table: Any, split: np.ndarray, model: str, features: str, backbone: str) -> Any:
    """The table with the valence that the model predicts for the pictures that it was trained on."""
    import pyarrow as pa
    import torch

    from raymotion.models.checkpoint import load_model

    loaded: Any = load_model(model)
    ids = table.column("sample_id").to_pylist()
    with torch.no_grad():
        numbers = loaded.network(features=[torch.from_numpy(vectors(features, backbone, ids))])
    own = loaded.outputs[0].decode(numbers)[:, 0].numpy()
    valence = np.where(split == "train", own, table.column("predicted_valence").to_numpy())
    index = table.schema.get_field_index("predicted_valence")
    return table.set_column(index, table.schema.field(index), pa.array(valence, pa.float32()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="folder of OASIS.csv and images/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    from sklearn.metrics import accuracy_score, f1_score

    from raymotion.data.readers.oasis import OasisReader
    from raymotion.data.samples import read_samples, write_samples
    from raymotion.models.checkpoint import read_checkpoint_info
    from raymotion.models.inputs.values import prediction_marks
    from raymotion.models.outputs.bands import Bands
    from raymotion.models.outputs.single_label import HARD
    from raymotion.train.crossfit import cross_fit
    from raymotion.train.recipe import load_recipe
    from raymotion.train.runs import publish

    started = time.monotonic()
    table, _ = OasisReader(path=arguments.data, no_split=True).read()
    ids, themes = table.column("sample_id").to_pylist(), np.array(table.column("group_id").to_pylist())
    placeholder = {"data": {"samples": "all.parquet"}}
    recipe: Any = load_recipe("two-input", options=placeholder)
    bands = Bands("valence", recipe.bands.edges, recipe.bands.labels, scale=(1.0, 7.0))
    truth = bands.read(table, where=arguments.data).arrays[HARD].argmax(axis=1)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work, features = Path(folder), str(Path(folder) / "embeddings")
        write_samples(work / "all.parquet", table)
        embeddings(str(work / "all.parquet"), features, recipe.backbone, recipe.weights, recipe.size,
                   recipe.pooled_stages)  # fmt: skip
        for seed in arguments.seeds:
            said = {name: np.zeros(len(ids), dtype=int) for name in METHODS}
            for fold, split in enumerate(splits_of(themes, seed)):
                tested, learned = np.flatnonzero(split == "test"), np.flatnonzero(split == "train")
                samples, first = str(work / "samples.parquet"), work / "first"
                write_samples(samples, with_split(table, split))
                shutil.rmtree(first, ignore_errors=True)
                options = {"data": {"samples": samples, "embeddings": [features]}, "seed": seed, "workers": 0,
                           "dimensions": ["valence"]}  # fmt: skip
                cross_fit(load_recipe("regressor", options=options), first, parallel=False)
                made, model = str(first / "samples.parquet"), str(first / "model")
                predicted = read_samples(made)
                said["threshold"][tested] = bands.band_of(predicted.column("predicted_valence").to_numpy()[tested])
                said["majority"][tested] = np.bincount(truth[learned]).argmax()
                leaky = str(work / "leaky.parquet")
                write_samples(leaky, with_own_predictions(predicted, split, model, features, recipe.backbone))
                # The mistake would be refused, so the same model is told that it predicted these out of fold.
                passed = str(work / "passed")
                shutil.rmtree(passed, ignore_errors=True)
                wrong = read_samples(leaky)
                marks = prediction_marks(wrong["sample_id"].to_pylist(), wrong["predicted_valence"].to_numpy())
                publish(read_checkpoint_info(model), passed, crossfit={"marks": {"predicted_valence": marks}})
                inputs = {"two-input": (made, model), "leaky": (leaky, passed), "picture": (made, None)}
                for name, (path, inner) in inputs.items():
                    info = train("two-input", path, features, seed, work / name, first=inner)
                    said[name][tested] = answers_of(info, ids, tested, "probabilities").argmax(axis=1)
                print(f"seed {seed}, fold {fold + 1} of {FOLDS}", flush=True)
            for name, own in said.items():
                results[name].append((accuracy_score(truth, own), f1_score(truth, own, average="macro")))

    counts = np.bincount(truth, minlength=len(bands.vocabulary.labels))
    told = ", ".join(f"{count} {name}" for count, name in zip(counts, bands.vocabulary.labels, strict=True))
    print(f"\n{len(ids)} pictures: {told}; {FOLDS} folds, {len(arguments.seeds)} seeds")
    print(f"{'':12}{'accuracy':>10}{'macro F1':>10}   by seed")
    for name, runs in results.items():
        accuracy, f1 = (statistics.mean(values) for values in zip(*runs, strict=True))
        print(f"{name:12}{accuracy:10.4f}{f1:10.4f}   " + " ".join(f"{own:.4f}" for _, own in runs))
    print(f"{time.monotonic() - started:.0f} s")
    print(json.dumps({name.replace("-", "_"): round(statistics.mean(f1 for _, f1 in runs), 4)
                      for name, runs in results.items()}))  # fmt: skip


if __name__ == "__main__":
    main()
