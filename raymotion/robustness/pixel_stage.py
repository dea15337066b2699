"""The stage that attacks pictures with a few changed pixels, and the table of its results."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.data.provenance import MADE_FROM
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.pipeline.stages import Item, Stage, made_from
from raymotion.robustness.goals import Aim, Goal, Objective, make_objective
from raymotion.robustness.prediction import PictureModel
from raymotion.robustness.searches import (
    EVOLUTION,
    GRADIENTS,
    METHODS,
    RANDOM,
    Found,
    Oracle,
    draw_at_random,
    evolve,
    follow_gradients,
)
from raymotion.robustness.white_box import InputGradients

ATTACKED = "attacked"
_PIXEL = pa.struct([pa.field(name, pa.int32()) for name in ("x", "y", "r", "g", "b", "was_r", "was_g", "was_b")])
# Number of `SCHEMA`, and of what its values mean. A change gives another one, so that rows of an older version of
# raymotion are refused before any work, and never mixed with new ones.
ROW_FORMAT = 2
SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        *MADE_FROM,
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("pixels", pa.int32()),
        pa.field("method", pa.string()),
        pa.field("success", pa.bool_()),
        pa.field("queries", pa.int32()),
        pa.field("sent", pa.int32()),
        pa.field("gradients", pa.int32()),
        pa.field("changed", pa.list_(_PIXEL)),
        pa.field("before", pa.string(), nullable=False),
        pa.field("after", pa.string()),
        pa.field("before_values", pa.list_(pa.float32()), nullable=False),
        pa.field("after_values", pa.list_(pa.float32())),
        # Of vectors: where the picture finds its own caption, how many of its image there are, and how many in all.
        pa.field("before_rank", pa.int32()),
        pa.field("after_rank", pa.int32()),
        pa.field("own_captions", pa.int32()),
        pa.field("captions", pa.int32()),
        pa.field("no_gradients", pa.string()),
        pa.field("png", pa.binary()),
    ]
)


@dataclass(frozen=True)
class AttackPlan:
    """What a worker needs to know of an attack.

    Attributes:
        output: name of the attacked output.
        truths: what is true of each sample, by sample_id.
        gallery: the captions of each of them, in the same order, if the objective needs them.
        pixels: the numbers K of changed pixels.
        queries: most pictures to send for a picture, a K and a method.
        population: candidates of a generation.
        strategy: one of `searches.STRATEGIES`.
        batch_size: pictures of a forward pass.
        gradients: whether to run the reference that knows the gradients.
    """

    output: str
    aim: Aim
    truths: Mapping[str, np.ndarray]
    gallery: tuple[tuple[str, ...], ...]
    pixels: tuple[int, ...]
    queries: int
    population: int
    strategy: str
    batch_size: int
    gradients: bool
    seed: int


class AttackPixels:
    """Attacks each picture with every number of pixels and every method.

    Its random numbers depend on the seed and the sample alone, so results depend on no other picture and no worker.

    Args:
        stages: of the model's plan.

    Attributes:
        tally: pictures sent, by method.
    """

    name = "attack"
    whole_shard = False

    def __init__(self, stages: Sequence[Stage], plan: AttackPlan) -> None:
        self.plan, self.model = plan, PictureModel(stages, plan.output)
        self.tally: Counter[str] = Counter()

    def setup(self, threads: int, device: str) -> None:
        self.model.setup(threads, device)
        info: CheckpointInfo = self.model.model.info
        self.objective: Objective = make_objective(info, self.plan.aim, self.plan.output)
        if self.objective.needs_gallery:
            said = self.model.predict_captions(self.plan.gallery)
            self.objective.gather(said, np.stack(list(self.plan.truths.values())))

    def process(self, items: Sequence[Item]) -> None:
        for item in items:
            if self.name not in item.output:  # else done, before another picture of the batch failed
                self._attack(item)

    def _attack(self, item: Item) -> None:
        picture = item.pixels
        assert picture is not None
        self.model.fitting.clear()  # the last picture may have been larger
        values, failure = self.model.predict(item.row, [picture])
        if failure is not None:
            item.failure = failure
            return
        clean, objective = values[0], self.objective
        truth = self.plan.truths[item.row["sample_id"]]
        goal = objective.goal(truth, clean)
        height, width = picture.shape[:2]
        shared = {
            "width": width, "height": height, "before": objective.says(clean, truth), "before_values": clean.tolist(),
        }  # fmt: skip
        if (found := objective.rank(clean, truth)) is not None:
            shared |= {"before_rank": found.rank, "own_captions": found.own, "captions": found.pool}
        if isinstance(goal, str):
            item.output[self.name] = [{**shared, "state": goal}]
            return
        rows = []
        for pixels, method, result, why_not in self._searches(item.row, picture, goal):
            told = {**shared, "state": ATTACKED, "pixels": pixels, "method": method, "no_gradients": why_not}
            if result is not None:
                told |= self._described(result, picture, truth)
                self.tally[method] += result.sent
            rows.append(told)
        item.output[self.name] = rows

    def _searches(
        self, row: Mapping[str, Any], picture: np.ndarray, goal: Goal
    ) -> list[tuple[int, str, Found | None, str | None]]:
        plan, found = self.plan, list[tuple[int, str, Found | None, str | None]]()
        gradients = InputGradients(self.model) if plan.gradients else None
        searched = row if self.objective.reads_captions else {**row, "captions": []}
        original = None if gradients is None else gradients.try_on(searched, picture, goal)
        mark = int.from_bytes(hashlib.sha256(str(row["sample_id"]).encode()).digest()[:8], "big")

        def oracle() -> Oracle:
            return Oracle(self.model, row, picture, goal, plan.queries, plan.batch_size, searched=searched)

        for pixels in plan.pixels:
            seeds = {method: [plan.seed, mark, pixels, number] for number, method in enumerate(METHODS)}
            one = evolve(oracle(), pixels, plan.population, seeds[EVOLUTION], plan.strategy)
            found.append((pixels, EVOLUTION, one, None))
            one = draw_at_random(oracle(), pixels, plan.population, seeds[RANDOM])
            found.append((pixels, RANDOM, one, None))
            if gradients is not None:
                known = None
                if original is not None:
                    known = follow_gradients(oracle(), pixels, seeds[GRADIENTS], gradients, original)
                found.append((pixels, GRADIENTS, known, gradients.why_not))
        return found

    def _described(self, found: Found, picture: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        names = [own.name for own in _PIXEL]
        changed = [
            dict(zip(names, (*new, *picture[new[1], new[0]].tolist()), strict=True)) for new in found.changed.tolist()
        ]
        finite = bool(np.isfinite(found.after).all())
        place = self.objective.rank(found.after, truth) if finite else None
        return {
            "success": found.success, "queries": found.queries, "sent": found.sent, "gradients": found.gradients,
            "changed": changed, "after": self.objective.says(found.after, truth) if finite else None,
            "after_values": found.after.tolist() if finite else None,
            "after_rank": None if place is None else place.rank,
            # Those that mislead; any other can be made again from `changed`.
            "png": found.png if found.success else None,
        }  # fmt: skip


class AttackSink:
    """Encodes one row a picture, number of pixels and method; of a picture that does not count, one row."""

    def encode(self, items: Sequence[Item]) -> pa.Table:
        """Converts items to rows of `SCHEMA`."""
        known = dict(zip((own.name for own in MADE_FROM), made_from(items), strict=True))
        rows = []
        for place, item in enumerate(items):
            first = {
                "sample_id": item.row["sample_id"],
                "group_id": item.row["group_id"],
                **{name: column[place].as_py() for name, column in known.items()},
            }
            rows += [{**first, **told} for told in item.output[AttackPixels.name]]
        return pa.Table.from_pylist(rows, SCHEMA)
