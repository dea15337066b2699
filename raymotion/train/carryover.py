"""How well a kind of model carries over: trained without one domain of a table at a time, and tested on that domain.

Beside it stands the same recipe on the table's own splits: a model that gains there may lose elsewhere. And a logistic
regression on the frozen features of the same network, which learns least of the training domains, where the kind has a
last layer to fit. See `data.domains` for what a domain is, and what is left out of training with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raymotion import records, storage
from raymotion.batch.progress import ProgressKind
from raymotion.config import digest_of
from raymotion.data.domains import domain_values, rows_of_domains
from raymotion.data.samples import read_samples
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.learning.bootstrap import sampling_units
from raymotion.learning.metrics.auc import CHANCE, judged, weighed_auc
from raymotion.learning.metrics.multilabel import Evaluation, metric_text
from raymotion.learning.paired import Weighed, paired_gain
from raymotion.learning.significance import FEWEST_IMAGES, Gain
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.outputs.multilabel import HARD
from raymotion.models.recipe import LossSettings, MultiLabelRecipe, Probe, TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.text_table import csv_text
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import require_independent_labels, require_loggers
from raymotion.train.runs import (
    RUNS,
    ComparisonProgress,
    publish,
    read_answers,
    require_same_comparison,
    run_all,
    write_plan,
)
from raymotion.version import __version__

RECORD, CSV, PAGE, MODEL = "carryover.json", "carryover.csv", "carryover.html", "model"
# Strength of the logistic regression, as scikit-learn's default.
LINEAR = Probe(strengths=(1.0,))


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        domain: the value that is held out; None: the table's own splits.
        linear: the logistic regression on frozen features, in place of the recipe.
    """

    domain: str | None
    seed: int
    linear: bool = False

    @property
    def name(self) -> str:
        """The name of the run's folder, as in `without-art-3f2c-seed0`."""
        own = "in-domain"
        if self.domain is not None:
            readable = re.sub(r"[^A-Za-z0-9]+", "-", self.domain).strip("-")[:40]
            own = f"without-{readable}-{digest_of(self.domain)[:4]}"
        return f"{'linear-' if self.linear else ''}{own}-seed{self.seed}"


@dataclass(frozen=True)
class Row:
    """One row of the table: the seeds of one recipe, tested on one domain.

    Attributes:
        domain: the value that was held out from training; None: the test split of all domains.
        linear: see `Run`.
        evaluations: one for each seed.
        chance_map: mAP of a random order.
        over_chance: macro AUC above 0.5.
        over_linear: macro AUC above that of the logistic regression; None for itself, and where there is none.
        judged: whether each label has enough images to judge its ranking.
    """

    domain: str | None
    linear: bool
    evaluations: tuple[Evaluation, ...]
    chance_map: float
    over_chance: Gain
    over_linear: Gain | None
    judged: tuple[bool, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.evaluations[0].samples

    @property
    def labels(self) -> int:
        """Number of labels with enough images to judge their ranking."""
        return self.evaluations[0]["macro_auc"].labels or 0

    def values(self, name: str) -> np.ndarray:
        """Returns a metric of each seed; `bce_gain`: how far the BCE is below that of the training domains' prior."""
        if name == "bce_gain":
            return np.array([(own["bce"].prior or 0.0) - (own["bce"].value or 0.0) for own in self.evaluations])
        return np.array([own[name].value for own in self.evaluations], dtype=np.float64)


@dataclass(frozen=True)
class Carryover:
    """The result of `carry_over`.

    Attributes:
        rows: those of the recipe first; of each, the held-out domains before the table's own splits.
        told: what the final model's training.json holds under `carryover`.
        without_linear: why there is no logistic regression; None if there is.
    """

    folder: str
    recipe: str
    column: str
    rows: list[Row]
    told: dict[str, Any]
    settings: dict[str, Any]
    without_linear: str | None

    def row(self, domain: str | None, *, linear: bool = False) -> Row:
        """Returns the row of a held-out domain, or of the table's own splits."""
        return next(row for row in self.rows if (row.domain, row.linear) == (domain, linear))

    @property
    def held_out(self) -> list[Row]:
        """The rows of the recipe on domains that it was not trained on."""
        return [row for row in self.rows if row.domain is not None and not row.linear]


@dataclass(frozen=True)
class _Test:
    """The samples that a row is measured on; truth is (n, L)."""

    ids: list[str]
    groups: list[str]
    truth: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        """Which labels have enough images to judge their ranking, bool (L,)."""
        return judged(self.truth, self.units)

    def weighed(self, info: CheckpointInfo) -> Weighed:
        return weighed_auc(self.truth, read_answers(info, "test", self.ids), self.units)

    @property
    def units(self) -> np.ndarray:
        return sampling_units(self.groups, len(self.groups))

    def gain(self, runs: Sequence[CheckpointInfo], others: Sequence[CheckpointInfo] | None) -> Gain:
        """Returns the gain in macro AUC over other runs, whose mean counts, or over chance."""
        at_chance: Weighed = lambda counts: np.full(len(counts), CHANCE)  # noqa: E731
        second = [at_chance] if others is None else [self.weighed(info) for info in others]
        found = paired_gain(
            [self.weighed(info) for info in runs], second, groups=int(self.units.max()) + 1, numbers=self.truth.size
        )
        base = CHANCE if others is None else float(np.mean([_auc(info) for info in others]))
        return Gain(tuple(_auc(info) - base for info in runs), found.low, found.high)


@one_writer_of("out")
def carry_over(
    recipe: TrainRecipe,
    column: str,
    out: storage.PathLike,
    *,
    values: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    address: str | None = None,
    parallel: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressKind = "none",
) -> Carryover:
    """Trains a recipe without each domain, and with all, and measures them on the domain and on the test split.

    Each run writes a checkpoint to `out`/runs; after an interruption the same call trains the missing ones. `out`/model
    is the model of the first seed that was trained on all domains, and its training.json says how such models carried
    over.

    Args:
        recipe: its seed, workers and `data.holdout_domain` are set here.
        column: text column of the sample table; each of its values is a domain.
        values: domains to hold out; default: all.
        seeds: of the recipe; the logistic regression runs with the first.
        parallel: False: one run after the other in this process, without Ray.
        say: receives one line for each finished run.
        progress: how progress is shown on standard error.

    Raises:
        InputError: there is no such column or domain, a domain or the test split has too few labelled samples, or the
            recipe predicts no labels.
    """
    target = storage.absolute(out)
    require_loggers(recipe, storage.join(target, RUNS, "run"))
    recipe = _checked(recipe, seeds)
    domains = _domains(recipe, column, values)
    data = {value: prepare_data(_recipe_of(Run(value, seeds[0]), recipe, column)) for value in (*domains, None)}
    require_independent_labels(recipe, data[None].facts)
    tests = {value: _test_of(own, column, value) for value, own in data.items()}
    without_linear = _no_linear(recipe, data[None])
    settings = {
        **recipe.result_settings(), "seed": None, "data_fingerprint": data[None].fingerprint, "column": column,
        "domains": domains, "seeds": list(seeds),
    }  # fmt: skip
    del data
    # More seeds or other domains only add runs.
    ignore = (*recipe.places, "domains", "seeds")
    require_same_comparison(target, RECORD, settings, (CSV, PAGE, MODEL), ignore=ignore)
    runs = [Run(value, seed) for seed in seeds for value in (*domains, None)]
    if without_linear is None:
        runs += [Run(value, seeds[0], linear=True) for value in (*domains, None)]
    infos: dict[Run, CheckpointInfo] = {}
    names = [run.name for run in runs]
    write_plan(target, "carry-over", RECORD, names)
    with ComparisonProgress(progress, storage.join(target, RUNS), names, title="carry-over") as shown:
        shown.waiting("starting")
        recipes = [(run, _recipe_of(run, recipe, column)) for run in runs]
        for run, info in run_all(recipes, target, address, parallel):
            infos[run] = info
            line = f"{len(infos)}/{len(runs)} {run.name}: macro AUC {metric_text(_auc(info))}"
            (shown.say if shown.kind == "bar" else say)(line)
            shown.ended(run.name)
    rows = [
        _row(value, linear, infos, tests[value])
        for linear in (False, True) if without_linear is None or not linear for value in (*domains, None)
    ]  # fmt: skip
    told = {
        "column": column,
        "domains": {row.domain: _told(row) for row in rows if row.domain is not None and not row.linear},
        "in_domain": next(_told(row) for row in rows if row.domain is None),
    }
    publish(infos[Run(None, seeds[0])], storage.join(target, MODEL), carryover=told)
    result = Carryover(target, recipe.kind, column, rows, told, settings, without_linear)
    _write(result)
    return result


def _checked(recipe: TrainRecipe, seeds: Sequence[int]) -> TrainRecipe:
    """Returns the recipe as these runs take it; raises an `InputError` for settings that they would ignore."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds {list(seeds)} are not different ones, at least one")
    if recipe.data.holdout_domain or recipe.seed:
        name = "data.holdout_domain" if recipe.data.holdout_domain else "seed"
        raise InputError(f"the recipe sets {name}, which these runs set themselves", remedy="Leave it out.")
    if recipe.workers > 1:
        raise InputError(f"the recipe asks for {recipe.workers} workers", remedy="Each of these runs has one.")
    if getattr(recipe.data, "labels", None):
        raise InputError("the recipe learns pseudo-labels, which name no domains", remedy="Give --samples.")
    # Tasks run in other working directories.
    samples = storage.absolute(recipe.data.samples)
    return recipe.model_copy(
        update={"workers": 0, "data": recipe.data.model_copy(update={"samples": samples})}
    ).with_absolute_paths()


def _domains(recipe: TrainRecipe, column: str, values: Sequence[str]) -> list[str]:
    """Returns the domains to hold out, the one with the most samples first."""
    path = recipe.data.samples
    table = read_samples(path)
    counts = domain_values(table, column, where=path)
    if len(counts) < 2:
        raise InputError(
            f"all samples have {column} = {next(iter(counts))!r}: without them there is nothing to train on",
            path=path,
            remedy="Name another column, or merge tables: raymotion data merge.",
        )
    labelled = np.asarray(pc.is_valid(table.column("labels")))
    for value in values or counts:
        if not (labelled & rows_of_domains(table, [f"{column}={value}"], where=path)).any():
            raise InputError(
                f"none of the {counts[value]:,} samples of {column} = {value!r} has labels",
                path=path,
                remedy="Hold out the others alone: --value NAME, for each.",
            )
    return [value for value in counts if not values or value in values]


def _recipe_of(run: Run, recipe: TrainRecipe, column: str) -> TrainRecipe:
    held = () if run.domain is None else (f"{column}={run.domain}",)
    update: dict[str, Any] = {"seed": run.seed, "data": recipe.data.model_copy(update={"holdout_domain": held})}
    if run.linear:
        update |= {"probe": LINEAR, "optimiser": recipe.optimiser.model_copy(update={"epochs": 1})}
        if isinstance(recipe, MultiLabelRecipe):
            update |= {"loss": LossSettings(), "distillation": None}
    return recipe.model_copy(update=update)


def _test_of(data: TrainingSet, column: str, value: str | None) -> _Test:
    targets = next(iter(data.targets.values()))
    rows = data.splits["test"]
    test = _Test([data.sample_ids[row] for row in rows], [data.groups[row] for row in rows], targets.arrays[HARD][rows])
    if not test.judged.any():
        what = "the split test" if value is None else f"{column} = {value!r}"
        remedy = (
            "Split the table with a larger test split: raymotion data split." if value is None
            else "Hold out the others alone: --value NAME, for each."
        )  # fmt: skip
        raise InputError(
            f"{what} has too few samples to judge a ranking: of its {len(rows):,} labelled ones, no label has "
            f"{FEWEST_IMAGES} images that carry it and {FEWEST_IMAGES} that do not",
            path=data.name,
            remedy=remedy,
        )
    return test


def _no_linear(recipe: TrainRecipe, data: TrainingSet) -> str | None:
    """Returns why the recipe has no logistic regression beside it; None if it has."""
    from raymotion.train.task import Task

    linear = _recipe_of(Run(None, recipe.seed, linear=True), recipe, "")
    if linear == recipe:
        return "the recipe is a logistic regression on frozen features itself"
    task = Task(linear, data)
    try:
        task.kind.heads(task.build(), task.outputs)
    except InputError as error:
        return error.reason
    return None


def _auc(info: CheckpointInfo) -> float:
    assert info.test is not None
    return float(info.test["metrics"]["macro_auc"]["value"])


def _row(domain: str | None, linear: bool, infos: Mapping[Run, CheckpointInfo], test: _Test) -> Row:
    own = [info for run, info in infos.items() if (run.domain, run.linear) == (domain, linear)]
    others = [info for run, info in infos.items() if run.linear and run.domain == domain and not linear]
    tested = [info.test or {} for info in own]
    return Row(
        domain, linear, tuple(Evaluation.from_dict(one) for one in tested), float(tested[0]["chance_map"]),
        test.gain(own, None), test.gain(own, others) if others else None,
        tuple(test.judged.tolist()),
    )  # fmt: skip


def _told(row: Row) -> dict[str, Any]:
    """Returns what training.json says of a row: means over the seeds."""
    return {
        "samples": row.samples,
        "labels": row.labels,
        "auc": float(row.values("macro_auc").mean()),
        "auc_low": None if row.over_chance.low is None else CHANCE + row.over_chance.low,
        "auc_high": None if row.over_chance.high is None else CHANCE + row.over_chance.high,
        "map": float(row.values("macro_ap").mean()),
        "chance_map": row.chance_map,
        "bce_below_prior": float(row.values("bce_gain").mean()),
        "seeds": len(row.evaluations),
    }


def _write(result: Carryover) -> None:
    head = (
        "model",
        "held_out",
        "seed",
        "samples",
        "labels_judged",
        "macro_auc",
        "macro_ap",
        "chance_map",
        "bce",
        "bce_prior",
    )
    lines = [
        ("logistic regression" if row.linear else result.recipe, row.domain, seed, row.samples, row.labels,
         one["macro_auc"].value, one["macro_ap"].value, row.chance_map, one["bce"].value, one["bce"].prior)
        for row in result.rows
        for seed, one in zip(result.settings["seeds"], row.evaluations, strict=False)
    ]  # fmt: skip
    storage.write_text(storage.join(result.folder, CSV), csv_text(head, lines))
    rows = [
        {
            "model": "logistic regression" if row.linear else result.recipe,
            "held_out": row.domain,
            **_told(row),
            "macro_auc": row.values("macro_auc").tolist(),
            "macro_ap": row.values("macro_ap").tolist(),
            "bce_gain": row.values("bce_gain").tolist(),
            "over_chance": {**asdict(row.over_chance), "verdict": row.over_chance.verdict},
            "over_linear": row.over_linear and {**asdict(row.over_linear), "verdict": row.over_linear.verdict},
            "classes": {own.label: own.auc for own in row.evaluations[0].per_class},
        }
        for row in result.rows
    ]
    # Written last: its presence marks a complete comparison.
    records.write_record(
        storage.join(result.folder, RECORD),
        {
            "raymotion": __version__, "settings": result.settings, "rows": rows, "carryover": result.told,
            "without_logistic_regression": result.without_linear,
        },
    )  # fmt: skip
