"""The value of pre-training on pseudo-labels: transfer compared with its controls, over seeds and depths.

Yosinski, Clune, Bengio and Lipson (2014), "How transferable are features in deep neural networks?". A is the student
trained on pseudo-labels, B the human-labelled set. The first n layers are copied from A (`AnB`) or from a network
trained on B itself (`BnB`, the control) and frozen; with a plus they are fine-tuned. `scratch` is the network trained
on B from random weights, and the base of BnB. The loss of AnB against BnB measures how specific A's layers are to A;
the loss of BnB against scratch measures the cost of splitting a network.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raymotion import records, storage
from raymotion.batch.cluster import available_cpus
from raymotion.batch.progress import ProgressKind
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.learning.metrics.multilabel import Evaluation, metric_text
from raymotion.learning.paired import paired_map_gain
from raymotion.learning.significance import Gain
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.outputs.multilabel import HARD
from raymotion.models.recipe import TrainRecipe, Transfer
from raymotion.models.training_set import TrainingSet
from raymotion.train.pictures import cached_pictures
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import require_independent_labels, require_loggers
from raymotion.train.runs import RUNS, ComparisonProgress, read_answers, require_same_comparison, run_all, write_plan
from raymotion.version import __version__

CONDITIONS = ("scratch", "AnB", "AnB+", "BnB", "BnB+")
RECORD, TABLES = "finetune.json", ("finetune.csv", "finetune.png")


@dataclass(frozen=True)
class Run:
    """One training run of the comparison."""

    condition: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder, as in `A3Bplus-seed0`."""
        if self.condition == "scratch":
            return f"scratch-seed{self.seed}"
        return f"{self.condition.replace('n', str(self.depth)).replace('+', 'plus')}-seed{self.seed}"


@dataclass(frozen=True)
class Score:
    """One metric of one condition.

    Attributes:
        values: one value per seed.
        against_scratch: per seed, the difference to training from scratch with that seed; positive is better.
    """

    values: tuple[float, ...]
    prior: float
    constant: float
    against_scratch: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1)."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """One row of the table: a condition at a depth.

    Attributes:
        depth: None for training from scratch.
        distinct_top3: per seed, the number of distinct sets of three highest labels predicted.
        validation_map: mAP on validation, averaged over seeds, for model selection.
        gain, over_control: gain in mAP over training from scratch, and over the same transfer from a network without
            pseudo-labels (`AnB` over `BnB`, `AnB+` over `BnB+`); None without a counterpart.
    """

    condition: str
    depth: int | None
    scores: Mapping[str, Score]
    distinct_top3: tuple[int, ...]
    validation_map: float
    gain: Gain | None = None
    over_control: Gain | None = None


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; `folder` holds it as JSON and CSV, with every checkpoint."""

    folder: str
    split: str
    samples: int
    layers: list[list[str]]
    rows: list[Row]


@one_writer_of("out")
def compare(
    recipe: TrainRecipe,
    source: storage.PathLike,
    out: storage.PathLike,
    *,
    depths: Sequence[int] = (),
    seeds: Sequence[int] = (0, 1, 2),
    conditions: Sequence[str] = CONDITIONS,
    address: str | None = None,
    parallel: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: ProgressKind = "none",
) -> Comparison:
    """Runs every condition at every depth with every seed on the recipe's samples.

    Each run writes a checkpoint to `out`/runs; after an interruption the same call trains the missing ones. Runs are
    Ray tasks, as many at once as there are CPUs (or GPUs, if any).

    Args:
        recipe: data and optimiser of the runs; its seed, workers and transfer are set here.
        source: checkpoint of student A.
        depths: numbers of layers to copy; default: all but the head.
        parallel: False: one run after the other in this process, without Ray.
        say: receives one line for each finished run.
        progress: how progress is shown on standard error.

    Raises:
        InputError: `source` is not a student, a depth or condition does not exist, or the recipe sets its own network.
    """
    a, target = storage.absolute(source), storage.absolute(out)
    require_loggers(recipe, storage.join(target, RUNS, "run"))
    layers = _layers(read_checkpoint_info(a))
    chosen = tuple(sorted(set(depths))) or (len(layers) - 1,)
    for depth in chosen:
        if not 1 <= depth < len(layers):
            raise InputError(
                f"has {len(layers)} layers, the head among them; {depth} cannot be transferred",
                path=a,
                remedy=f"Give depths from 1 to {len(layers) - 1}.",
            )
    plain = type(recipe).model_validate({})
    given = [
        name
        for name in ("model", "image_init", "text_init", "tokenizer", "transfer", "seed")
        if getattr(recipe, name, None) != getattr(plain, name, None)
    ]
    if given:
        raise InputError(
            f"the recipe sets {', '.join(given)}, but these runs take shape, tokenizer and weights from {a}, and "
            "seeds from the command",
            remedy="Take a recipe without, such as finetune-student.",
        )
    if recipe.workers > 1:
        raise InputError(f"the recipe asks for {recipe.workers} workers", remedy="Each of these runs has one.")
    # Tasks run in other working directories.
    samples = storage.absolute(recipe.data.samples)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"samples": samples})})
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise InputError(f"there is no condition {unknown[0]!r}", remedy=f"Choose from {', '.join(CONDITIONS)}.")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise InputError(f"seeds {list(seeds)} are not different ones, at least one")
    # Prepares the data and decodes the pictures once, before one process per core would do so at the same time.
    data = prepare_data(_recipe_of(Run("scratch", 0, seeds[0]), recipe, a, target))
    require_independent_labels(recipe, data.facts)
    if data.streamed is not None:
        own = data.streamed
        cached_pictures(recipe.data, own.image_uris, own.reader(recipe).size, threads=available_cpus())
    settings = {
        **recipe.result_settings(),
        "data_fingerprint": data.fingerprint,
        "seed": None,
        "source": read_checkpoint_info(a).fingerprint,
        "depths": list(chosen),
        "seeds": list(seeds),
        "conditions": list(conditions),
    }
    require_same_comparison(target, RECORD, settings, TABLES, ignore=recipe.places)
    # Scratch always runs: the others are compared with it, and BnB starts from it.
    first = [Run("scratch", 0, seed) for seed in seeds]
    then = [
        Run(name, depth, seed) for depth in chosen for name in CONDITIONS[1:] if name in conditions for seed in seeds
    ]
    done = 0

    def tell(run: Run, info: CheckpointInfo) -> None:
        nonlocal done
        done += 1
        value = getattr(info, _scored_split(info))["metrics"]["macro_ap"]["value"]
        line = f"{done}/{len(first) + len(then)} {run.name}: mAP {metric_text(value)}"
        (shown.say if shown.kind == "bar" else say)(line)
        shown.ended(run.name)

    infos: dict[Run, CheckpointInfo] = {}
    names = [run.name for run in [*first, *then]]
    write_plan(target, "fine-tuning", RECORD, names)
    with ComparisonProgress(progress, storage.join(target, RUNS), names) as shown:
        shown.waiting("starting")
        for group in (first, then):
            recipes = [(run, _recipe_of(run, recipe, a, target)) for run in group]
            for run, info in run_all(recipes, target, address, parallel):
                infos[run] = info
                tell(run, info)
    split = _scored_split(infos[first[0]])
    rows = [_row("scratch", None, first, infos, split, first)]
    measured = _Answers(data, infos, "test" if split == "test" else "val")
    for depth in chosen:
        by_condition = {
            name: [run for run in then if (run.condition, run.depth) == (name, depth)] for name in CONDITIONS[1:]
        }
        for name, runs in by_condition.items():
            if not runs:
                continue
            control = by_condition[name.replace("A", "B")] if name.startswith("A") else []
            rows.append(
                replace(
                    _row(name, depth, runs, infos, split, first),
                    gain=measured.gain(runs, first),
                    over_control=measured.gain(runs, control) if control else None,
                )
            )
    scored = getattr(infos[first[0]], split)
    result = Comparison(target, split, scored["samples"], layers, rows)
    _write(result, settings)
    return result


def _scored_split(info: CheckpointInfo) -> str:
    """Returns `test`, or `validation` if there is no test split with labelled samples."""
    test = info.test
    return "test" if test is not None and test["metrics"]["macro_ap"]["value"] is not None else "validation"


def _layers(info: CheckpointInfo) -> list[list[str]]:
    """Returns the module names of each layer, from input to output."""
    network = info.kind.restore(info.model, info.inputs, info.outputs)
    blocks = info.kind.layers(network)
    if not blocks:
        raise InputError(
            f"is a {info.kind.name}; layers of one cannot be copied",
            path=info.folder,
            remedy="Give a student, whose layers lie in one line from the input to the output.",
        )
    return [sorted({name.rpartition(".")[0] or name for name in block}) for block in blocks]


def _recipe_of(run: Run, recipe: TrainRecipe, a: str, target: str) -> TrainRecipe:
    base = storage.join(target, RUNS, Run("scratch", 0, run.seed).name)
    transfer = Transfer(
        source=base if run.condition.startswith("B") else a,
        depth=run.depth,
        freeze=run.condition in ("AnB", "BnB"),
    )
    cached = recipe.data.model_copy(update={"cache_images": True})
    return recipe.model_copy(update={"transfer": transfer, "seed": run.seed, "workers": 0, "data": cached})


class _Answers:
    """The runs' predictions for the evaluated split, from their checkpoints, in the order of the data."""

    def __init__(self, data: TrainingSet, infos: Mapping[Run, CheckpointInfo], split: str) -> None:
        rows = data.splits[split]
        self.infos, self.split = infos, split
        self.ids = [data.sample_ids[row] for row in rows]
        self.truth = next(iter(data.targets.values())).arrays[HARD][rows]
        # Samples of one picture are resampled together because they are not independent.
        self.groups = [data.groups[row] for row in rows]

    def gain(self, runs: Sequence[Run], others: Sequence[Run]) -> Gain:
        """Returns the gain in mAP of `runs` over `others`, which have the same seeds in the same order."""
        metric = "test" if self.split == "test" else "validation"
        values = [
            [Evaluation.from_dict(getattr(self.infos[run], metric))["macro_ap"].value or 0.0 for run in each]
            for each in (runs, others)
        ]
        found = paired_map_gain(
            self.truth, np.stack([self._of(run) for run in runs]), np.stack([self._of(run) for run in others]),
            groups=self.groups,
        )  # fmt: skip
        return Gain(tuple(a - b for a, b in zip(*values, strict=True)), found.low, found.high)

    def _of(self, run: Run) -> np.ndarray:
        return read_answers(self.infos[run], self.split, self.ids)


def _row(
    condition: str,
    depth: int | None,
    runs: Sequence[Run],
    infos: Mapping[Run, CheckpointInfo],
    split: str,
    scratch: Sequence[Run],
) -> Row:
    scored = [Evaluation.from_dict(getattr(infos[run], split)) for run in runs]
    base = {run.seed: Evaluation.from_dict(getattr(infos[run], split)) for run in scratch}
    scores = {}
    for name, metric in scored[0].metrics.items():
        own = [one[name].value for one in scored]
        others = [base[run.seed][name].value for run in runs]
        known = [(a, b) for a, b in zip(own, others, strict=True) if a is not None and b is not None]
        if len(known) < len(runs) or metric.prior is None or metric.constant is None:
            continue
        sign = 1 if metric.higher_is_better else -1
        scores[name] = Score(
            tuple(a for a, _ in known), metric.prior, metric.constant, tuple(sign * (a - b) for a, b in known)
        )
    chosen_by = [(infos[run].validation or {})["metrics"]["macro_ap"]["value"] for run in runs]
    return Row(condition, depth, scores, tuple(one.distinct_top3 for one in scored), float(np.mean(chosen_by)))


def _gain_record(gain: Gain | None) -> dict[str, Any] | None:
    return None if gain is None else {**asdict(gain), "verdict": gain.verdict}


def _write(result: Comparison, settings: Mapping[str, Any]) -> None:
    rows = [
        {
            "condition": row.condition,
            "depth": row.depth,
            "distinct_top3": list(row.distinct_top3),
            "validation_map": row.validation_map,
            "map_over_scratch": _gain_record(row.gain),
            "map_over_control": _gain_record(row.over_control),
            "metrics": {
                name: {
                    "values": list(score.values),
                    "mean": score.mean,
                    "spread": None if math.isnan(score.spread) else score.spread,
                    "prior": score.prior,
                    "constant": score.constant,
                    "against_scratch": list(score.against_scratch),
                }
                for name, score in row.scores.items()
            },
        }
        for row in result.rows
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["condition", "depth", "seed", "metric", "value", "prior", "constant", "against_scratch"])
    for row in result.rows:
        for name, score in row.scores.items():
            for seed, value, gain in zip(settings["seeds"], score.values, score.against_scratch, strict=True):
                writer.writerow([row.condition, row.depth or 0, seed, name, value, score.prior, score.constant, gain])
    storage.write_text(storage.join(result.folder, "finetune.csv"), text.getvalue())
    # Written last: its presence marks a complete comparison.
    records.write_record(
        storage.join(result.folder, RECORD),
        {
            "raymotion": __version__,
            "settings": dict(settings),
            "split": result.split,
            "samples": result.samples,
            "layers": result.layers,
            "rows": rows,
        },
    )
