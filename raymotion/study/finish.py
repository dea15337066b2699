"""The end of a study: test scored once for every winner, and the recipe that came out."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from raymotion import storage
from raymotion.errors import RaymotionError
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.study.record import StudyFolder
from raymotion.study.score import predict_test, score_test
from raymotion.study.space import JOINT, Configuration
from raymotion.study.stages import Search, train
from raymotion.study.cost import cost


def finish(study: Search) -> None:
    """Scores the winners on the test split, writes the record and the winner's recipe, and clears up.

    To be called while Ray may still be connected to: a winner whose weights are gone is trained again.
    """
    record, data = study.record, study.data
    winners = [(stage["name"], stage["winner"]) for stage in record["stages"]]
    if record["joint"]:
        winners.append((JOINT, record["joint"]["winner"]))
    entries: list[dict[str, Any]] = []
    if len(data.splits["test"]):
        _require_weights(study, winners)
        scores: dict[str, dict[str, Any]] = {}
        answers: dict[str, np.ndarray] = {}
        for name, winner in winners:
            key = winner["key"]
            if key not in scores:
                predicted = predict_test(study.folder, key, study.recipe(winner["config"]), study.seeds, data)
                scores[key] = score_test(predicted, study.validation(key), data, seed=study.base.seed)
                answers[key] = predicted
            files = study.folder.write_test(name, study.seeds, answers[key])
            entries.append({"name": name, "key": key, "config": winner["config"], **scores[key], "files": files})
    record["test"] = {"scored_at": datetime.now(UTC).isoformat(timespec="seconds"), "entries": entries}
    record["cost"] = cost(study)
    record["status"] = "complete"
    write_winner(study.folder, study.recipe(record["stages"][-1]["winner"]["config"]))
    study.folder.write(record)
    # The record stands: what cannot be removed now is no reason to fail.
    for place in (study.folder.scratch, study.folder.data):
        with contextlib.suppress(OSError, RaymotionError):
            storage.remove_tree(place)


def write_winner(folder: StudyFolder, recipe: FusionRecipe) -> None:
    """The recipe of a winner, ready for `raymotion train`."""
    chosen = {"kind": "fusion", **recipe.model_dump(mode="json", exclude_defaults=True)}
    storage.write_text(folder.winner, yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True))


def _require_weights(study: Search, winners: list[tuple[str, dict[str, Any]]]) -> None:
    """Trains a winner again whose weights are gone or damaged.

    Gone: an earlier stage ran it, lost it, and a later one found it anew.
    """
    for name, winner in winners:
        if study.folder.has_weights(winner["key"], study.seeds):
            continue
        known = study.folder.read_trial(winner["key"])
        assert known is not None
        before = study.validation(winner["key"])
        cell: Configuration = known.config
        known.status = "running"
        study.folder.write_trial(known)
        train(study, [(winner["key"], cell, winner["config"])], known.stage, None, name)
        if not np.allclose(before, study.validation(winner["key"]), atol=1e-3):
            study.say(f"the weights of {name}'s winner were gone; trained again, it is not quite what it was")
