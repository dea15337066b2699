"""Out-of-fold predictions: each training sample is predicted by a model that was not trained on its group.

Whatever learns from the predictions of a model (a second model, a search for wrong labels) must not see those for the
samples that it was trained on: they are better than any that it makes later.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import records, storage
from raymotion.batch.progress import ProgressKind
from raymotion.data.samples import DIMENSIONS, SCHEMA, read_samples, write_samples
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.checkpoint_files import ANSWERS
from raymotion.models.inputs.values import prediction_marks
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, require_loggers
from raymotion.train.runs import RUNS, ComparisonProgress, publish, require_same_comparison, run_all, write_plan
from raymotion.train.task import Task
from raymotion.version import __version__

RECORD, PREDICTIONS, SAMPLES, MODEL, FOLDS = "crossfit.json", "predictions.parquet", "samples.parquet", "model", "folds"
# Strata of numbers, for folds of about the same mean.
STRATA = 5


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        fold: the part of the training split that it does not see; None: it sees all.
    """

    fold: int | None

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return "all" if self.fold is None else f"without-fold-{self.fold}"


@dataclass(frozen=True)
class Crossfit:
    """The result of `cross_fit`.

    Attributes:
        evaluations: of each output on the training split, out of fold, as `Output.evaluate` gives them.
        files: what was written.
    """

    folder: str
    evaluations: dict[str, dict[str, Any]]
    files: tuple[str, ...]


@one_writer_of("out")
def cross_fit(
    recipe: TrainRecipe,
    out: storage.PathLike,
    *,
    folds: int = 5,
    address: str | None = None,
    parallel: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressKind = "none",
) -> Crossfit:
    """Trains a recipe without each fold of the training split, and with all, and writes what they predict.

    Each run chooses its epoch on the table's own validation split. After an interruption the same call trains the
    missing runs.

    Args:
        folds: parts of the training split. Groups stay together, and the parts are alike in the first output's targets
            (scikit-learn's `StratifiedGroupKFold`).
        parallel: False: one run after the other in this process, without Ray.
        say: receives one line for each finished run.
        progress: how progress is shown on standard error.

    Raises:
        InputError: the training split has fewer groups than folds, or the recipe learns no sample table, or a model of
            vectors.
    """
    target = storage.absolute(out)
    require_loggers(recipe, storage.join(target, RUNS, "run"))
    recipe = _checked(recipe)
    samples = read_samples(recipe.data.samples)
    data = prepare_data(recipe)
    first = kind_of(recipe).checked_outputs(recipe, data.facts)[0]
    if first.gives == "vectors":
        raise InputError(
            f"a {recipe.kind} gives vectors, and each fold's model has a space of its own: vectors of different spaces "
            "cannot be compared",
            remedy="Cross-fit a model of labels or numbers.",
        )
    Task(recipe, data)  # refuses features or a loss that do not fit, before anything is written
    fold_of = assign_folds(data, folds, recipe.seed)
    settings = {**recipe.result_settings(), "data_fingerprint": data.fingerprint, "folds": folds}
    made = (PREDICTIONS, SAMPLES, MODEL, FOLDS)
    require_same_comparison(target, RECORD, settings, made, ignore=recipe.places)
    runs = [*(Run(fold) for fold in range(folds)), Run(None)]
    names = [run.name for run in runs]
    # Before the folds' tables: by the plan the same command knows the folder as its own, and goes on.
    write_plan(target, "cross-fit", RECORD, names)
    recipes = []
    for run in runs:
        path = recipe.data.samples
        if run.fold is not None:
            path = storage.join(target, FOLDS, f"{run.name}.parquet")
            write_samples(path, _without(samples, {own for own, fold in fold_of.items() if fold == run.fold}))
        recipes.append((run, recipe.model_copy(update={"data": recipe.data.model_copy(update={"samples": path})})))
    infos: dict[Run, CheckpointInfo] = {}
    with ComparisonProgress(progress, storage.join(target, RUNS), names, title="cross-fitting") as shown:
        shown.waiting("starting")
        for run, info in run_all(recipes, target, address, parallel):
            infos[run] = info
            line = f"{len(infos)}/{len(runs)} {run.name}"
            (shown.say if shown.kind == "bar" else say)(line)
            shown.ended(run.name)
    outputs = infos[Run(None)].outputs
    predicted = _predictions(infos, fold_of)
    evaluations = _evaluate(recipe, data, predicted)
    told = {"folds": folds, "samples": sum(fold is not None for fold in predicted.folds)}
    columns = _predicted_columns(samples, outputs, predicted)
    # By which a model that learns from the predictions knows that they are of this one.
    publish(infos[Run(None)], storage.join(target, MODEL), crossfit={**told, "marks": _marks(samples, columns)})
    files = [storage.join(target, PREDICTIONS), storage.join(target, MODEL)]
    storage.write_table(files[0], predicted.table)
    if columns:
        files.insert(0, storage.join(target, SAMPLES))
        write_samples(files[0], _with_columns(samples, columns))
    # Written last: its presence marks a complete run.
    records.write_record(
        storage.join(target, RECORD),
        {"raymotion": __version__, "settings": settings, "out_of_fold": evaluations, **told},
    )
    return Crossfit(target, evaluations, tuple(files))


def assign_folds(data: TrainingSet, folds: int, seed: int) -> dict[str, int]:
    """Returns the fold of each training sample, by its id.

    Raises:
        InputError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rows = data.splits["train"]
    groups = np.array([data.groups[row] for row in rows])
    if len(set(groups.tolist())) < folds:
        raise InputError(
            f"the split train has {len(set(groups.tolist()))} groups, fewer than {folds} folds", path=data.name,
            remedy="Ask for fewer with --folds.",
        )  # fmt: skip
    first = next(iter(data.targets.values()))
    strata = _strata(next(iter(first.arrays.values()))[rows], folds)
    found: dict[str, int] = {}
    with warnings.catch_warnings():
        # A class with fewer rows than folds is in some of them only.
        warnings.simplefilter("ignore", UserWarning)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for fold, (_, held) in enumerate(splitter.split(strata, strata, groups)):
            found |= {data.sample_ids[rows[position]]: fold for position in held.tolist()}
    return found


def _strata(targets: np.ndarray, folds: int) -> np.ndarray:
    """Returns a class for each row of the first targets (n, L): of labels the rarest, of numbers the quantile.

    Where no class has as many rows as there are folds, all rows are of one.
    """
    labels = ((targets == 0) | (targets == 1)).all() and targets.shape[1] > 1
    if labels:
        rare = np.where(targets > 0, targets.sum(axis=0), np.inf)
        found = np.where(np.isinf(rare.min(axis=1)), -1, rare.argmin(axis=1))
    else:
        first = np.nan_to_num(targets[:, 0], nan=float(np.nanmin(targets)))
        found = np.digitize(first, np.quantile(first, np.linspace(0, 1, STRATA + 1)[1:-1]))
    _, counts = np.unique(found, return_counts=True)
    return np.asarray(found if counts.max() >= folds else np.zeros(len(targets), np.int64))


@dataclass(frozen=True)
class _Predicted:
    """All predictions.

    Attributes:
        table: sample_id, split, fold (null for validation and test), and the outputs' columns.
    """

    table: pa.Table

    @property
    def folds(self) -> list[int | None]:
        return self.table.column("fold").to_pylist()


def _predictions(infos: Mapping[Run, CheckpointInfo], fold_of: Mapping[str, int]) -> _Predicted:
    tables = []
    for run, info in infos.items():
        answers = storage.read_table(storage.join(info.folder, ANSWERS))
        splits = np.array(answers.column("split").to_pylist())
        # A fold is the test split of its run; of the others, the model of all samples predicts validation and test.
        answers = answers.filter(pa.array(splits == "test" if run.fold is not None else splits != "train"))
        if run.fold is not None:
            foreign = [own for own in answers.column("sample_id").to_pylist() if fold_of.get(own) != run.fold]
            assert not foreign, f"{foreign[0]} is not in fold {run.fold}"
            answers = answers.set_column(1, "split", pa.array(["train"] * answers.num_rows, pa.string()))
        answers = answers.add_column(2, "fold", pa.array([run.fold] * answers.num_rows, pa.int32()))
        tables.append(answers)
    return _Predicted(pa.concat_tables(tables).sort_by("sample_id"))


def _evaluate(recipe: TrainRecipe, data: TrainingSet, predicted: _Predicted) -> dict[str, dict[str, Any]]:
    place = {own: row for row, own in enumerate(data.sample_ids)}
    held = predicted.table.filter(pa.array([fold is not None for fold in predicted.folds]))
    rows = np.array([place[own] for own in held.column("sample_id").to_pylist()])
    groups = [data.groups[row] for row in rows]
    return {
        own.name: own.evaluate(
            data.targets_of(own), rows, own.values(held), training=data.splits["train"], seed=recipe.seed,
            groups=groups,
        )
        for own in kind_of(recipe).checked_outputs(recipe, data.facts)
        if own.gives != "vectors"  # each fold's model has a space of its own
    }  # fmt: skip


def _predicted_columns(samples: pa.Table, outputs: Sequence[Output], predicted: _Predicted) -> dict[str, pa.Array]:
    """Returns the predicted_* columns for all rows of the table; null where nothing was predicted."""
    ids = predicted.table.column("sample_id").to_pylist()
    names = [name for own in outputs for name in own.columns(np.zeros((0, own.width), np.float32))]
    found = {}
    for name in names:
        if name in DIMENSIONS:
            value = dict(zip(ids, predicted.table.column(name).to_pylist(), strict=True))
            column = [value.get(own) for own in samples.column("sample_id").to_pylist()]
            found[f"predicted_{name}"] = pa.array(column, pa.float32())
    return found


def _marks(samples: pa.Table, columns: Mapping[str, pa.Array]) -> dict[str, list[str]]:
    """Returns `prediction_marks` of the samples that have a prediction, by column."""
    ids, found = samples.column("sample_id"), {}
    for name, values in columns.items():
        there = values.is_valid()
        found[name] = prediction_marks(ids.filter(there).to_pylist(), values.filter(there).to_numpy())
    return found


def _with_columns(samples: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        samples = samples.drop_columns([name]) if name in samples.column_names else samples
        samples = samples.append_column(pa.field(name, pa.float32()), values)
    return samples


def _without(samples: pa.Table, held: set[str]) -> pa.Table:
    """Returns the table with the samples of a fold as its test split; those of the table's own have no split."""
    splits = [
        "test" if own in held else None if split == "test" else split
        for own, split in zip(samples.column("sample_id").to_pylist(), samples.column("split").to_pylist(), strict=True)
    ]
    index = samples.schema.get_field_index("split")
    return samples.set_column(index, SCHEMA.field("split"), pa.array(splits, pa.string()))


def _checked(recipe: TrainRecipe) -> TrainRecipe:
    """Returns the recipe as these runs take it; raises an `InputError` for settings that they would ignore."""
    if recipe.data.holdout_domain:
        raise InputError("the recipe sets data.holdout_domain, and the folds are held out", remedy="Leave it out.")
    if recipe.workers > 1:
        raise InputError(f"the recipe asks for {recipe.workers} workers", remedy="Each of these runs has one.")
    if getattr(recipe.data, "labels", None):
        raise InputError("the recipe learns pseudo-labels, which have no folds", remedy="Give --samples.")
    # Tasks run in other working directories.
    update: dict[str, Any] = {"samples": storage.absolute(recipe.data.samples)}
    if folders := getattr(recipe.data, "embeddings", None):
        update["embeddings"] = [storage.absolute(folder) for folder in folders]
    return recipe.model_copy(update={"workers": 0, "data": recipe.data.model_copy(update=update)}).with_absolute_paths()
