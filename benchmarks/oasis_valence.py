"""How well valence and arousal of pictures are predicted from a frozen network, beside ridge regression and the mean.

OASIS (Kurdi, Lozano and Banaji 2017) has 900 pictures with ratings from 1 to 7; "Acorns 1, 2, 3" are near duplicates,
so the pictures of a theme are always in one fold: random folds reward a model for having seen the others of a theme.
Five folds by theme (`numpy.random.default_rng(seed).permutation` of the themes) are each predicted by a model of the
other four, of which some themes are its validation. R2 is over all pictures at once, a mean of the seeds; its interval
draws whole themes.

    recipe       through `raymotion.train.fit`, on features of `raymotion features embeddings`
    ridge        scikit-learn's RidgeCV on the standardised features of the network's last layer
    ridge, same  the same on the features that the recipe reads
    mean         of the training pictures

    python benchmarks/oasis_valence.py                        # 2 minutes on 2 cores
    python benchmarks/oasis_valence.py --set probe.strengths=1 --seeds 0
    python benchmarks/oasis_valence.py --save valence/        # also a model of all pictures, to score on others
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

DATA = Path(__file__).parent.parent / "../shared/data/oasis"
DIMENSIONS = ("valence", "arousal")
FOLDS = 5
# Share of the training themes that is validation: the recipe as it comes chooses nothing on it.
VALIDATION = 0.05


def splits_of(themes: np.ndarray, seed: int) -> list[np.ndarray]:
    """`train`, `val` or `test` of each picture, for each fold."""
    names = np.random.default_rng(seed).permutation(np.unique(themes))
    found = []
    for fold in range(FOLDS):
        tested, rest = names[fold::FOLDS], np.setdiff1d(names, names[fold::FOLDS])
        chosen = np.random.default_rng([seed, fold]).permutation(rest)[: max(1, round(VALIDATION * len(rest)))]
        split = np.full(len(themes), "train", dtype=object)
        split[np.isin(themes, chosen)], split[np.isin(themes, tested)] = "val", "test"
        found.append(split)
    return found


def with_split(table: Any, split: np.ndarray) -> Any:
    """The sample table with this split."""
    import pyarrow as pa

    from raymotion.data.samples import SCHEMA

    column = pa.array(split.tolist(), pa.string())
    return table.set_column(SCHEMA.get_field_index("split"), SCHEMA.field("split"), column)


def train(table: Any, split: np.ndarray, options: Any, assignments: list[str], recipe: str, out: Path) -> Any:
    """Trains on a split of the table; returns the checkpoint."""
    from raymotion.data.samples import write_samples
    from raymotion.train.fit import fit
    from raymotion.train.recipe import load_recipe

    samples = str(out.parent / "samples.parquet")
    write_samples(samples, with_split(table, split))
    data = {**options["data"], "samples": samples}
    return fit(load_recipe(recipe, options={**options, "data": data}, assignments=assignments), out).info


def embeddings(
    samples: str, out: str, backbone: str, weights: str, size: int | None, stages: int, augment: tuple[str, ...] = ()
) -> None:
    """Makes the features of all pictures."""
    from raymotion.batch.embeddings import EmbeddingSettings, embed

    embed(EmbeddingSettings(
        samples=samples, out=out, context=(backbone,), backbone_weights=(weights,), pooled_stages=(str(stages),),
        size=() if size is None else (str(size),), augment=augment,
    ))  # fmt: skip


def vectors(folder: str, backbone: str, ids: list[str]) -> np.ndarray:
    """The features of the pictures, in order, float32 (n, D)."""
    from raymotion.data.embeddings import Embeddings

    found = Embeddings([folder])
    block = found.block("context", backbone)
    return np.asarray(block.array[block.row_of[found.rows(ids)], 0], dtype=np.float32)


def ridge(features: np.ndarray, truth: np.ndarray, learned: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """What ridge regression predicts for the tested pictures; its penalty is chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(1, 5, 17)))
    return np.asarray(model.fit(features[learned], truth[learned]).predict(features[tested]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="folder of OASIS.csv and images/")
    parser.add_argument("--recipe", default="regressor")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--save", metavar="FOLDER", help="train the recipe on all pictures, too, and write it here")
    arguments = parser.parse_args()

    from raymotion.data.readers.oasis import OasisReader
    from raymotion.data.samples import write_samples
    from raymotion.learning.metrics.dimensions import evaluate_dimensions
    from raymotion.models.checkpoint_files import ANSWERS
    from raymotion.storage import read_table
    from raymotion.train.recipe import load_recipe

    started = time.monotonic()
    table, _ = OasisReader(path=arguments.data, no_split=True).read()
    ids, themes = table.column("sample_id").to_pylist(), np.array(table.column("group_id").to_pylist())
    truth = np.stack([table.column(name).to_numpy() for name in DIMENSIONS], axis=1).astype(np.float64)
    placeholder = {"data": {"samples": "all.parquet", "embeddings": ["embeddings"]}}
    recipe = load_recipe(arguments.recipe, options=placeholder, assignments=arguments.assignments)
    said: dict[str, list[np.ndarray]] = {name: [] for name in ("recipe", "ridge", "ridge, same", "mean")}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work = Path(folder)
        samples = str(work / "all.parquet")
        # Augmented views are made of training pictures alone, and each picture is one in some fold.
        write_samples(samples, with_split(table, np.full(len(ids), "train")))
        shape = (recipe.backbone, recipe.weights, recipe.size)  # type: ignore[attr-defined]
        stages = recipe.pooled_stages  # type: ignore[attr-defined]
        level = recipe.augmentation  # type: ignore[attr-defined]
        embeddings(samples, str(work / "read"), *shape, stages, () if level == "none" else (level,))
        embeddings(samples, str(work / "last"), *shape, 0)
        read, last = (vectors(str(work / own), shape[0], ids) for own in ("read", "last"))
        for seed in arguments.seeds:
            predicted = {name: np.zeros_like(truth) for name in said}
            for fold, split in enumerate(splits_of(themes, seed)):
                tested, learned = np.flatnonzero(split == "test"), np.flatnonzero(split != "test")
                out = work / "model"
                shutil.rmtree(out, ignore_errors=True)
                options = {"data": {"embeddings": [str(work / "read")]}, "seed": seed, "workers": 0,
                           "dimensions": list(DIMENSIONS)}  # fmt: skip
                info = train(table, split, options, arguments.assignments, arguments.recipe, out)
                answers = {row["sample_id"]: row for row in read_table(f"{info.folder}/{ANSWERS}").to_pylist()}
                for j, name in enumerate(DIMENSIONS):
                    predicted["recipe"][tested, j] = [answers[ids[row]][name] for row in tested]
                predicted["ridge"][tested] = ridge(last, truth, learned, tested)
                predicted["ridge, same"][tested] = ridge(read, truth, learned, tested)
                predicted["mean"][tested] = truth[learned].mean(axis=0)
                print(f"seed {seed}, fold {fold + 1} of {FOLDS}: {len(tested)} pictures", flush=True)
            for name, own in predicted.items():
                said[name].append(own)
        if arguments.save:
            # One theme is validation, which a recipe must have.
            split = np.where(themes == np.sort(np.unique(themes))[0], "val", "train")
            options = {"data": {"embeddings": [str(work / "read")]}, "workers": 0}
            train(table, split, options, arguments.assignments, arguments.recipe, Path(arguments.save))

    results = {
        name: [
            evaluate_dimensions(truth, own, training_mean=truth.mean(axis=0), names=DIMENSIONS, groups=themes)
            for own in several
        ]
        for name, several in said.items()
    }

    def mean(name: str, metric: str) -> float:
        return statistics.mean(float(own[metric].value or 0.0) for own in results[name])

    columns = [f"{dimension}_{metric}" for dimension in DIMENSIONS for metric in ("r2", "mae", "pearson", "ccc")]
    print(f"\n{len(ids)} pictures, {len(np.unique(themes))} themes, {FOLDS} folds, {len(arguments.seeds)} seeds")
    print(f"{'':14}" + "".join(f"{own:>17}" for own in columns))
    for name in said:
        print(f"{name:14}" + "".join(f"{mean(name, own):17.4f}" for own in columns))
    own = results["recipe"][0]["valence_r2"]
    print(f"R2 of valence, first seed, 95 % interval by theme: {own.low:.3f} to {own.high:.3f}")
    print(f"{time.monotonic() - started:.0f} s")
    figures = {
        "r2_valence": mean("recipe", "valence_r2"),
        "r2_arousal": mean("recipe", "arousal_r2"),
        "r2_ridge": mean("ridge", "valence_r2"),
        "r2_ridge_same_features": mean("ridge, same", "valence_r2"),
        "r2_mean": mean("mean", "valence_r2"),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
