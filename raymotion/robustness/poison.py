"""Poisoning of training sets as an experiment: clean and poisoned models of one recipe, scored on one test set.

1. Models are trained on the clean table, one for each seed.
2. A share of the training rows is poisoned (`poison_rows`), for each rate and seed; a collision uses the clean model of
   that seed.
3. Models are trained on the poisoned tables by the same recipe with the same seeds, on equally many rows.
4. All are scored on the same test samples (`poison_scores`), and three defences look for the poisons
   (`poison_defences`).

The same command neither poisons, trains nor measures again what is finished: poisons have a record, runs their
checkpoint, and what a model says of triggered pictures, and what defences find, a table (`poison_measured`). Figures
and intervals are computed anew from these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import records, storage
from raymotion.batch.label_dataset import matrix_of
from raymotion.batch.progress import ProgressKind
from raymotion.config import digest_of
from raymotion.data.samples import read_samples
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.learning.bootstrap import sampling_units
from raymotion.learning.significance import FEWEST_IMAGES, Gain
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.robustness.poison_collision import Budget, collide
from raymotion.robustness.poison_defences import (
    CLUSTERS,
    DEFENCES,
    ISSUES,
    MISSING,
    Found,
    label_issues,
    measure,
    suspicious_clusters,
)
from raymotion.robustness.poison_measured import keep, key_of
from raymotion.robustness.poison_model import OpenedModel
from raymotion.robustness.poison_rows import (
    SAMPLES,
    Change,
    Choice,
    Poison,
    Victim,
    choose_victims,
    copy_poisons,
    eligible_rows,
    label_of,
    labels_after,
    patched,
    require_enough,
    rows_at,
    truth_of,
    write_poisons,
    write_triggered,
)
from raymotion.robustness.poison_scores import (
    RANKING_RESAMPLES,
    RESAMPLES,
    Compared,
    TestSet,
    compare,
    groups_of,
    share,
)
from raymotion.robustness.poison_settings import PoisonSettings, rate_name
from raymotion.text_table import csv_text
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, require_loggers
from raymotion.train.runs import RUNS, ComparisonProgress, read_answers, require_same_comparison, run_all, write_plan
from raymotion.version import __version__

RECORD, CSV, PAGE, TRIGGERED, MEASURED = "poison.json", "poison.csv", "poison.html", "triggered", "measured"


@dataclass(frozen=True)
class Run:
    """One training run: a rate of poisons, 0 for the clean model, and a seed."""

    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{rate_name(self.rate)}-seed{self.seed}"


@dataclass(frozen=True)
class Row:
    """One row of the table: a poison rate, over the seeds.

    Attributes:
        poisons: number of poisoned rows.
        metric: the main metric, and how much of it was lost.
        classes: by label that enough groups of test samples carry; see `TestSet.of_class`.
        success: how often the attacker gets what he wants. trigger: test pictures with the patch that are answered with
            the target label; flip: test samples that may be mistaken and are answered with it; collision: the attacked
            pictures answered with the label of their poisons.
        without_patch: of the trigger: the poisoned models' answers to the same pictures without the patch (`clean`)
            against those with it (`poisoned`).
        defences: by name.
        distance: of collisions: median over poisons of the distance to the attacked picture's features, as a share of
            what it was before, in the pictures as written.
    """

    rate: float
    poisons: int
    metric: Compared
    classes: dict[str, Compared]
    success: Compared
    without_patch: Compared | None
    defences: dict[str, Found]
    distance: float | None = None

    @property
    def gains(self) -> bool:
        """Whether the poisoned models are shown to say more often what the attacker wants than the clean ones."""
        return self.success.verdict == "better"

    @property
    def works(self) -> bool:
        """Whether the attack is shown to work.

        A trigger has to gain over the same models' answers without the patch, too: else they have only come to like the
        target label.
        """
        return self.gains and (self.without_patch is None or self.without_patch.verdict == "better")


@dataclass(frozen=True)
class Poisoning:
    """The result of `poison`.

    Attributes:
        rows: by rate, the clean one first.
        metric: name of the main metric.
        majority: main metric of the best constant answer on the test set; None if it has none.
        prior: share of the training rows that carry the target label before any poison; None without a target.
        better_than_constant: whether every clean model beats the constant, by its interval: else no figure here means
            anything.
        victims: the attacked pictures of a collision: sample_id, their labels, and the label that is to be said.
        test_samples, train_samples: numbers of samples.
    """

    folder: str
    recipe: str
    attack: PoisonSettings
    rows: list[Row]
    metric: str
    majority: float | None
    prior: float | None
    better_than_constant: bool
    victims: list[dict[str, Any]]
    test_samples: int
    train_samples: int
    labels: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def clean(self) -> Row:
        """The row of the clean models."""
        return self.rows[0]

    @property
    def poisoned(self) -> list[Row]:
        """The rows with poisons."""
        return self.rows[1:]


@one_writer_of("out")
def poison(
    recipe: TrainRecipe,
    attack: PoisonSettings,
    out: storage.PathLike,
    *,
    address: str | None = None,
    parallel: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressKind = "none",
) -> Poisoning:
    """Trains a recipe on clean and on poisoned data, and measures what the poisons did.

    `out` gets a folder for each rate and seed with the poisoned sample table, its pictures and a record of each poison;
    the checkpoints are in `out`/runs.

    Args:
        recipe: its seed and workers are set here.
        parallel: as trials of Ray Tune; False: one run after the other in this process, without Ray.
        say: receives one line for each finished run.
        progress: how progress is shown on standard error.

    Raises:
        InputError: the recipe predicts no labels or does not read the pictures that are to be changed, a label is
            unknown, or there are too few rows for a rate.
    """
    target = storage.absolute(out)
    require_loggers(recipe, storage.join(target, RUNS, "run"))
    recipe = _checked(recipe)
    data = prepare_data(recipe)
    output = _output_of(recipe, data)
    _require_attackable(recipe, attack, data, output)
    victims = choose_victims(attack, data, output) if attack.attack == "collision" else []
    require_enough(attack, data, output, victims)
    test = _test_of(data, output)
    settings = {
        **recipe.result_settings(), "seed": None, "data_fingerprint": data.fingerprint,
        "poison": attack.model_dump(mode="json"),
    }  # fmt: skip
    tables = {
        CSV,
        PAGE,
        TRIGGERED,
        MEASURED,
        *(name for name in storage.list_entries(target) if name.startswith("rate-")),
    }
    # More rates or seeds only add runs, and defences look at what is there.
    ignore = (*recipe.places, "poison.rates", "poison.seeds", "poison.defences")
    require_same_comparison(target, RECORD, settings, tables, ignore=ignore)
    seeds = range(attack.seeds)
    clean = [Run(0.0, seed) for seed in seeds]
    then = [Run(rate, seed) for seed in seeds for rate in attack.poisoned]
    names = [run.name for run in (*clean, *then)]
    # Before any poison: by the plan the same command knows the folder as its own, and goes on.
    write_plan(target, "poisoning", RECORD, names)
    experiment = _Experiment(recipe, attack, data, output, test, victims, target)
    infos: dict[Run, CheckpointInfo] = {}
    with ComparisonProgress(progress, storage.join(target, RUNS), names, title="poisoning") as shown:

        def ended(run: Run, info: CheckpointInfo) -> None:
            infos[run] = info
            line = f"{len(infos)}/{len(names)} {run.name}"
            (shown.say if shown.kind == "bar" else say)(line)
            shown.ended(run.name)

        shown.waiting("starting")
        first = [(run, experiment.recipe_of(run)) for run in clean]
        if attack.attack == "collision":  # made with the clean models
            _sweep(first, target, address, parallel, ended)
            first = []
        for seed in seeds:
            shown.waiting(f"making poisons of seed {seed}")
            experiment.make(seed, infos.get(Run(0.0, seed)), told=_counted(shown, seed))
        _sweep([*first, *((run, experiment.recipe_of(run)) for run in then)], target, address, parallel, ended)
        shown.waiting("measuring")
        result = experiment.result(infos, settings)
    _write(result)
    return result


def _counted(shown: ComparisonProgress, seed: int) -> Callable[[int], None]:
    return lambda made: shown.waiting(f"making poisons of seed {seed}, {made:,} so far")


def _sweep(
    recipes: Sequence[tuple[Run, TrainRecipe]],
    target: str,
    address: str | None,
    parallel: bool,
    ended: Callable[[Run, CheckpointInfo], None],
) -> None:
    if parallel:
        from raymotion.robustness.poison_trials import sweep

        sweep(recipes, target, address, ended)
        return
    for run, info in run_all(recipes, target, address, parallel=False):
        ended(run, info)


def _checked(recipe: TrainRecipe) -> TrainRecipe:
    """Returns the recipe as these runs take it; raises an `InputError` for settings that they would ignore."""
    if recipe.seed:
        raise InputError("the recipe sets seed, which these runs set themselves", remedy="Leave it out.")
    if recipe.workers > 1:
        raise InputError(f"the recipe asks for {recipe.workers} workers", remedy="Each of these runs has one.")
    if getattr(recipe.data, "labels", None):
        raise InputError("the recipe learns pseudo-labels, and people's labels are poisoned", remedy="Give --samples.")
    if recipe.data.holdout_domain:
        raise InputError("the recipe sets data.holdout_domain, which changes the test set", remedy="Leave it out.")
    # Tasks run in other working directories.
    update: dict[str, Any] = {"samples": storage.absolute(recipe.data.samples)}
    if folders := getattr(recipe.data, "embeddings", None):
        update["embeddings"] = [storage.absolute(folder) for folder in folders]
    return recipe.model_copy(update={"workers": 0, "data": recipe.data.model_copy(update=update)}).with_absolute_paths()


def _output_of(recipe: TrainRecipe, data: TrainingSet) -> Output:
    """Returns the first output of a recipe; raises an `InputError` unless it learns labels of the sample table."""
    output = kind_of(recipe).checked_outputs(recipe, data.facts)[0]
    if output.gives not in ("labels", "one_label") or not output.reads_labels or output.vocabulary is None:
        raise InputError(
            f"the recipe predicts {output.name}, and the labels of samples are poisoned", path=data.name,
            remedy="Take a recipe that learns labels, such as fractal or mlp.",
        )  # fmt: skip
    return output


def _require_attackable(recipe: TrainRecipe, attack: PoisonSettings, data: TrainingSet, output: Output) -> None:
    """Raises an `InputError` for an attack that the recipe or its data do not fit."""
    for name in (attack.target, attack.source):
        if name is not None:
            label = label_of(name, output, where=data.name)
            if not truth_of(data, output)[data.splits["train"], label].any():
                raise InputError(f"no training sample has the label {name}", path=data.name)
    if not len(data.splits["test"]):
        raise InputError(
            "has no labelled sample of the split test, on which all models are scored", path=data.name,
            remedy="Split the table: raymotion data split.",
        )  # fmt: skip
    if attack.attack == "flip":
        return
    inputs = {own.name: own for own in kind_of(recipe).checked_inputs(recipe)}
    cached = [own for name, own in inputs.items() if own.looks_at != "none" and not data.inputs[name].streamed]
    if cached:
        raise InputError(
            f"the recipe reads cached features of {cached[0].plural}: changed pictures would have to be embedded anew "
            "in each run",
            remedy="Let the model read the pictures themselves (leave data.embeddings and data.features out), or flip "
            "labels: --attack flip.",
        )
    if data.streamed is None:
        what = "reads no pictures" if not any(own.looks_at != "none" for own in inputs.values()) else "finds none"
        raise InputError(
            f"the recipe {what}, and the attack {attack.attack} changes them",
            path=data.name, remedy="Take a recipe that reads pictures, such as fractal, or flip labels: --attack flip.",
        )  # fmt: skip
    if attack.attack == "collision" and output.gives != "one_label":
        raise InputError(
            "the recipe predicts labels that apply independently, and a collision makes one label of another",
            remedy="Take a recipe of one label (fractal, preact-resnet, mlp), or another attack.",
        )


def _test_of(data: TrainingSet, output: Output) -> TestSet:
    rows = data.splits["test"]
    return TestSet(
        output, [data.sample_ids[row] for row in rows], [data.groups[row] for row in rows],
        data.targets_of(output).take(rows), truth_of(data, output)[rows],
    )  # fmt: skip


@dataclass
class _Experiment:
    """What the parts of one experiment share."""

    recipe: TrainRecipe
    attack: PoisonSettings
    data: TrainingSet
    output: Output
    test: TestSet
    victims: list[Victim]
    target: str

    def __post_init__(self) -> None:
        self.samples: pa.Table = read_samples(self.recipe.data.samples)
        self.poisons: dict[Run, list[Poison]] = {}

    def folder(self, run: Run) -> str:
        """Returns the folder of a run's poisons."""
        return storage.join(self.target, rate_name(run.rate), f"seed{run.seed}")

    def recipe_of(self, run: Run) -> TrainRecipe:
        """Returns the recipe of a run: that of the clean one with another table."""
        path = storage.join(self.folder(run), SAMPLES) if run.rate else self.recipe.data.samples
        return self.with_samples(path).model_copy(update={"seed": run.seed})

    def with_samples(self, path: str) -> TrainRecipe:
        """Returns the recipe with another sample table."""
        return self.recipe.model_copy(update={"data": self.recipe.data.model_copy(update={"samples": path})})

    def make(self, seed: int, clean: CheckpointInfo | None, *, told: Callable[[int], None]) -> None:
        """Makes the poisons of a seed: those of the highest rate, of which lower rates have the first ones.

        Args:
            told: receives the number of poisons made so far.
        """
        highest, *lower = [Run(rate, seed) for rate in reversed(self.attack.poisoned)]
        own = self.attack.model_dump(mode="json", exclude={"rates", "seeds", "defences"})
        model = None if clean is None or self.attack.attack != "collision" else clean.fingerprint
        key = digest_of([own, seed, self.data.fingerprint, model])
        change = self._change(seed, clean)
        made = write_poisons(
            self.attack, self.samples, self.data, self.output, self._choices(seed), self.folder(highest),
            count=rows_at(highest.rate, self.data), key=key, change=change, victims=self.victims,
            distances=change.distances if isinstance(change, _Collider) else None, told=told,
        )  # fmt: skip
        self.poisons[highest] = made
        for run in lower:
            some = made[: rows_at(run.rate, self.data)]
            self.poisons[run] = copy_poisons(
                self.attack, self.samples, some, self.folder(highest), self.folder(run), key=key
            )

    def _choices(self, seed: int) -> Iterator[Choice]:
        return eligible_rows(self.attack, self.data, self.output, self.victims, seed)

    def _change(self, seed: int, clean: CheckpointInfo | None) -> Change | None:
        if self.attack.attack == "flip":
            return None
        if self.attack.attack == "trigger":
            return lambda choices, pictures: [patched(own, self.attack.patch) for own in pictures]
        assert clean is not None
        return _Collider(self.recipe.model_copy(update={"seed": seed}), self.attack, self.data, self.victims, clean)

    def result(self, infos: Mapping[Run, CheckpointInfo], settings: dict[str, Any]) -> Poisoning:
        """Measures everything."""
        found = {run: read_answers(info, "test", self.test.ids) for run, info in infos.items()}
        measured = _Measured(self, infos, found)
        clean = [infos[Run(0.0, seed)] for seed in range(self.attack.seeds)]
        rows = [measured.row(rate) for rate in self.attack.rates]
        told = [dict(info.test["metrics"][self.test.main]) for info in clean if info.test is not None]
        truth, labels = truth_of(self.data, self.output), self._labels()
        prior = None
        if self.attack.target is not None:
            label = label_of(self.attack.target, self.output, where=self.data.name)
            prior = float(truth[self.data.splits["train"], label].mean())
        return Poisoning(
            self.target, self.recipe.kind, self.attack, rows, self.test.main,
            told[0]["constant"] if told else None, prior,
            bool(told) and all(own["constant_gain"] is not None and own["constant_gain"][0] > 0 for own in told),
            [
                {
                    "sample_id": self.data.sample_ids[own.row],
                    "labels": [labels[i] for i in np.flatnonzero(truth[own.row]).tolist()],
                    "said": labels[own.label],
                }
                for own in self.victims
            ],
            len(self.test.ids), len(self.data.splits["train"]), labels, settings,
        )  # fmt: skip

    def _labels(self) -> tuple[str, ...]:
        assert self.output.vocabulary is not None
        return tuple(self.output.vocabulary.labels)


class _Collider:
    """Changes bases of a collision with the clean model; opened when the first are asked for."""

    def __init__(
        self, recipe: TrainRecipe, attack: PoisonSettings, data: TrainingSet, victims: Sequence[Victim],
        clean: CheckpointInfo,
    ) -> None:  # fmt: skip
        self.recipe, self.attack, self.data, self.victims, self.clean = recipe, attack, data, victims, clean
        self._model: OpenedModel | None = None
        self._towards = np.zeros((0, 0), np.float32)

    def __call__(self, choices: Sequence[Choice], pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        model = self._opened()
        found = collide(
            model, np.array([own.row for own in choices]), pictures,
            self._towards[[own.victim or 0 for own in choices]],
            budget=Budget(self.attack.max_change, self.attack.max_pixels), iterations=self.attack.iterations,
            closeness=self.attack.closeness,
        )  # fmt: skip
        return [own.pixels for own in found]

    def distances(self, path: str, poisons: Sequence[Poison]) -> list[tuple[float, float]]:
        """Measures the poisons in a written table, as the clean model reads them."""
        model = self._opened()
        place = {name: row for row, name in enumerate(self.data.sample_ids)}
        rows = np.array([place[own.sample_id] for own in poisons])
        number = {self.data.sample_ids[own.row]: i for i, own in enumerate(self.victims)}
        towards = self._towards[[number[own.victim or ""] for own in poisons]]
        recipe = self.recipe.model_copy(update={"data": self.recipe.data.model_copy(update={"samples": path})})
        written = OpenedModel(recipe, prepare_data(recipe), self.clean.folder)
        before, after = (np.linalg.norm(own.features(rows)[0] - towards, axis=1) for own in (model, written))
        return list(zip(before.tolist(), after.tolist(), strict=True))

    def _opened(self) -> OpenedModel:
        if self._model is None:
            self._model = OpenedModel(self.recipe, self.data, self.clean.folder)
            self._towards, there = self._model.features(np.array([own.row for own in self.victims]))
            if not there.all():
                lost = self.data.sample_ids[self.victims[int(np.flatnonzero(~there)[0])].row]
                raise InputError(f"the picture of {lost}, which is to be attacked, cannot be read", path=self.data.name)
        return self._model


class _Measured:
    """The figures of an experiment, from its runs' answers to the test samples (n, L)."""

    def __init__(
        self, experiment: _Experiment, infos: Mapping[Run, CheckpointInfo], answers: Mapping[Run, np.ndarray]
    ) -> None:
        self.of, self.infos, self.answers = experiment, infos, answers
        self.test, self.attack, self.data = experiment.test, experiment.attack, experiment.data
        self.seeds = range(self.attack.seeds)
        self.label = (
            None if self.attack.target is None
            else label_of(self.attack.target, experiment.output, where=self.data.name)
        )  # fmt: skip
        self.place = {int(row): i for i, row in enumerate(self.data.splits["test"].tolist())}
        self.triggered: dict[Run, np.ndarray] = {}
        self.shown = np.ones(len(self.test.ids), dtype=bool)
        if self.attack.attack == "trigger":
            self._answer_triggered()

    def _kept(self, run: Run, what: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
        return keep(storage.join(self.of.target, MEASURED, f"{run.name}-{what}.parquet"), key, make)

    def _answer_triggered(self) -> None:
        """Lets all models answer to the test pictures with the patch."""
        for run, info in self.infos.items():
            key = key_of(
                {
                    "run": info.fingerprint, "data": self.data.fingerprint, "seed": run.seed,
                    **self.attack.model_dump(include={"patch", "target", "source"}),
                }
            )  # fmt: skip

            def answers(run: Run = run, info: CheckpointInfo = info) -> pa.Table:
                shown, recipe, data = self._patched
                model = OpenedModel(recipe.model_copy(update={"seed": run.seed}), data, info.folder)
                said = model.predict_test()
                p = pa.FixedSizeListArray.from_arrays(pa.array(said.ravel(), pa.float32()), said.shape[1])
                return pa.table({"sample_id": self.test.ids, "shown": shown, "probabilities": p})

            found = self._kept(run, "triggered", key, answers)
            self.triggered[run] = matrix_of(found)
            self.shown &= found.column("shown").to_numpy()

    @cached_property
    def _patched(self) -> tuple[np.ndarray, TrainRecipe, TrainingSet]:
        """Writes the test pictures with the patch; returns which of the test samples have one, bool (n,), and the
        recipe and the data of a table of them."""
        folder = storage.join(self.of.target, TRIGGERED)
        rows = write_triggered(self.attack, self.of.samples, self.data, self.of.output, folder)
        recipe = self.of.with_samples(storage.join(folder, SAMPLES))
        data = prepare_data(recipe)
        if [data.sample_ids[row] for row in data.splits["test"]] != self.test.ids:
            raise InputError("the pictures with the patch are not those of the test set", path=folder)
        return np.isin(self.data.splits["test"], rows), recipe, data

    def row(self, rate: float) -> Row:
        clean, own = ([Run(each, seed) for seed in self.seeds] for each in (0.0, rate))
        test = self.test
        metric = compare(
            [test.metric(self.answers[run]) for run in clean], [test.metric(self.answers[run]) for run in own],
            units=test.units, of=np.ones(len(test.ids), dtype=bool), drop=True, numbers=test.truth.shape[1],
            resamples=RESAMPLES if test.one_label else RANKING_RESAMPLES,
        )  # fmt: skip
        classes = {}
        for label, name in enumerate(self.of._labels()):
            carry = test.truth[:, label]
            if groups_of(carry, test.units) >= FEWEST_IMAGES:
                classes[name] = compare(
                    [test.of_class(label, self.answers[run]) for run in clean],
                    [test.of_class(label, self.answers[run]) for run in own],
                    units=test.units, of=carry, drop=True,
                    resamples=RESAMPLES if test.one_label else RANKING_RESAMPLES,
                )  # fmt: skip
        success, without = self._success(clean, own)
        poisons = self.of.poisons.get(own[0], [])
        moved = [
            each.distance / each.distance_before
            for run in own for each in self.of.poisons.get(run, [])
            if each.distance is not None and each.distance_before
        ]  # fmt: skip
        return Row(
            rate, len(poisons), metric, classes, success, without,
            self._defences(rate) if self.attack.defences else {}, float(np.median(moved)) if moved else None,
        )  # fmt: skip

    def _said(self, run: Run, values: np.ndarray) -> np.ndarray:
        return self.test.answered(values, self.infos[run].thresholds)

    def _success(self, clean: Sequence[Run], own: Sequence[Run]) -> tuple[Compared, Compared | None]:
        test = self.test
        if self.attack.attack == "collision":
            places = [self.place[victim.row] for victim in self.of.victims]
            labels = [victim.label for victim in self.of.victims]
            units, everyone = np.unique(test.units[places], return_inverse=True)[1], np.ones(len(places), dtype=bool)
            sides = [
                [share(self._said(run, self.answers[run])[places, labels], everyone, units) for run in runs]
                for runs in (clean, own)
            ]
            return compare(sides[0], sides[1], units=units, of=everyone), None
        assert self.label is not None
        label = self.label

        def says(runs: Sequence[Run], values: Mapping[Run, np.ndarray], mask: np.ndarray) -> list[Any]:
            return [share(self._said(run, values[run])[:, label], mask, test.units) for run in runs]

        if self.attack.attack == "trigger":
            mask = self.shown
            with_patch = says(own, self.triggered, mask)
            success = compare(says(clean, self.triggered, mask), with_patch, units=test.units, of=mask)
            without = compare(says(own, self.answers, mask), with_patch, units=test.units, of=mask)
            return success, without
        mask = ~test.truth[:, label]
        if self.attack.source is not None:
            mask &= test.truth[:, label_of(self.attack.source, self.of.output, where=self.data.name)]
        if not mask.any():
            raise InputError("no test sample may be mistaken for the target label", path=self.data.name)
        sides = [says(runs, self.answers, mask) for runs in (clean, own)]
        return compare(sides[0], sides[1], units=test.units, of=mask), None

    def _defences(self, rate: float) -> dict[str, Found]:
        rows = self.data.splits["train"]
        ids = [self.data.sample_ids[row] for row in rows]
        units = sampling_units([self.data.groups[row] for row in rows], len(rows))
        flags: dict[str, list[np.ndarray]] = {name: [] for name in DEFENCES}
        poisoned: list[np.ndarray] = []
        for seed in self.seeds:
            run = Run(rate, seed)
            poisons = self.of.poisons.get(run, [])
            key = key_of(
                {
                    "run": self.infos[run].fingerprint, "data": self.data.fingerprint, "seed": seed,
                    "poisons": [asdict(own) for own in poisons],
                },
                "cleanlab", "scikit-learn",
            )  # fmt: skip
            found = self._kept(run, "defences", key, lambda run=run: self._flagged(run, ids, units))  # type: ignore[misc]
            names = {own.sample_id for own in poisons}
            poisoned.append(np.array([name in names for name in ids]))
            for name, column in DEFENCES.items():
                flags[name].append(found.column(column).to_numpy())
        return {name: measure(own, poisoned, units) for name, own in flags.items()}

    def _flagged(self, run: Run, ids: Sequence[str], units: np.ndarray) -> pa.Table:
        """Returns which training samples each defence marks in what a run learned from; unreadable ones never."""
        rows, val = self.data.splits["train"], self.data.splits["val"]
        recipe = self.of.recipe_of(run)
        model = OpenedModel(recipe, prepare_data(recipe), self.infos[run].folder)
        given = labels_after(self.data, self.of.output, self.of.poisons.get(run, []))[rows]
        (features, there), (trusted, seen) = model.features(rows), model.features(val)
        issues = np.zeros(len(rows), dtype=bool)
        issues[there] = label_issues(
            given[there], features[there], self.of._labels(), one_label=self.test.one_label, groups=units[there],
            seed=run.seed,
        )  # fmt: skip
        clusters, missing = suspicious_clusters(
            given & there[:, None], features, truth_of(self.data, self.of.output)[val] & seen[:, None], trusted,
            seed=run.seed,
        )  # fmt: skip
        marked = {ISSUES: issues, CLUSTERS: clusters, MISSING: missing}
        return pa.table({"sample_id": ids, **{DEFENCES[name]: own for name, own in marked.items()}})


def _write(result: Poisoning) -> None:
    head = (
        "rate", "seed", "poisons", result.metric, f"{result.metric}_drop", "success", "success_of_clean_model",
        "success_without_patch", *(f"{own}_{what}" for own in DEFENCES.values() for what in ("recall", "precision")),
    )  # fmt: skip
    lines = []
    for row in result.rows:
        for seed in range(result.attack.seeds):
            found = [
                value
                for name in DEFENCES
                for value in (
                    (row.defences[name].recall or (None,) * result.attack.seeds)[seed]
                    if name in row.defences else None,
                    row.defences[name].precision[seed] if name in row.defences else None,
                )
            ]  # fmt: skip
            lines.append(
                (
                    row.rate, seed, row.poisons, row.metric.poisoned[seed], row.metric.difference.seeds[seed],
                    row.success.poisoned[seed], row.success.clean[seed],
                    None if row.without_patch is None else row.without_patch.clean[seed], *found,
                )
            )  # fmt: skip
    storage.write_text(storage.join(result.folder, CSV), csv_text(head, lines))
    # Written last: its presence marks a complete experiment.
    records.write_record(
        storage.join(result.folder, RECORD),
        {
            "raymotion": __version__, "settings": result.settings, "metric": result.metric,
            "majority": result.majority, "prior": result.prior, "better_than_constant": result.better_than_constant,
            "victims": result.victims, "test_samples": result.test_samples, "train_samples": result.train_samples,
            "rows": [_told(row) for row in result.rows],
        },
    )  # fmt: skip


def _told(row: Row) -> dict[str, Any]:
    return {
        "rate": row.rate, "poisons": row.poisons, "metric": _compared(row.metric),
        "classes": {name: _compared(own) for name, own in row.classes.items()}, "success": _compared(row.success),
        "without_patch": None if row.without_patch is None else _compared(row.without_patch),
        "defences": {
            name: {
                **asdict(own), "random": own.random, "over_random": None if own.over_random is None
                else _gain(own.over_random),
            }
            for name, own in row.defences.items()
        },
        "distance": row.distance,
    }  # fmt: skip


def _compared(own: Compared) -> dict[str, Any]:
    return {
        "clean": list(own.clean), "poisoned": list(own.poisoned), "difference": _gain(own.difference),
        "samples": own.samples, "groups": own.groups, "verdict": own.verdict,
    }  # fmt: skip


def _gain(own: Gain) -> dict[str, Any]:
    return {"seeds": list(own.seeds), "low": own.low, "high": own.high, "verdict": own.verdict}
