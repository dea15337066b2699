"""The end of a study: scores every winner once on the test split and writes the winning recipe."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import numpy as np
import yaml

from raymotion import storage
from raymotion.errors import InputError, RaymotionError
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import place_of
from raymotion.study.cost import cost
from raymotion.study.data import ids_of
from raymotion.study.record import OnTest, StudyFolder, WinnerOnTest
from raymotion.study.score import score_test
from raymotion.study.stages import Search, train
from raymotion.study.trial import predict_test


def finish(study: Search) -> None:
    """Scores the winners on the test split, writes the record and the winner's recipe, and cleans up.

    Call it while Ray can still be connected: a winner whose weights are missing is trained again.
    """
    record, data = study.record, study.data
    entries: list[WinnerOnTest] = []
    if _can_be_scored(study):
        _require_weights(study)
        for stage in record.parts:
            key, config = stage.winner.key, stage.winner.config
            known = next((entry for entry in entries if entry.key == key), None)
            if known is not None:
                entries.append(known.model_copy(update={"name": stage.name, "config": config}))
                continue
            test = predict_test(study.folder, key, study.recipe(config), record.seeds, data, study.output)
            entry = score_test(
                stage.name, key, config, test, study.validation(key), data, study.output, record.metric,
                seed=study.base.seed,
            )  # fmt: skip
            for seed, own in zip(record.seeds, test, strict=True):
                entry.files |= study.folder.write_predictions(key, "test", seed, ids_of(data, "test"), own)
            entries.append(entry)
    record.test = OnTest(scored_at=datetime.now(UTC).isoformat(timespec="seconds"), entries=entries)
    record.cost = cost(record, study.base.optimiser.epochs)
    record.status = "complete"
    write_winner(study.folder, study.recipe(record.stages[-1].winner.config))
    study.folder.write(record)
    # The record is complete, so a failure to clean up must not fail the study.
    for place in (study.folder.scratch, study.folder.data):
        with contextlib.suppress(OSError, RaymotionError):
            storage.remove_tree(place)


def _can_be_scored(study: Search) -> bool:
    """Returns whether the test split has anything to score."""
    rows, targets = study.data.splits["test"], study.data.targets_of(study.output)
    try:
        study.output.require(targets, {"train": rows, "val": rows}, where="")
    except InputError:
        return False
    return len(rows) > 0


def write_winner(folder: StudyFolder, recipe: TrainRecipe) -> None:
    """Writes the recipe of a winner, ready for `raymotion train`."""
    chosen = {"kind": place_of(recipe.kind), **recipe.model_dump(mode="json", exclude_defaults=True)}
    storage.write_text(folder.winner, yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True))


def _require_weights(study: Search) -> None:
    """Trains winners whose weights are missing or damaged again.

    They are missing if an earlier stage ran the winner and dropped its weights, and a later stage chose it again.
    """
    for stage in study.record.parts:
        key = stage.winner.key
        if study.folder.has_weights(key, study.record.seeds):
            continue
        known = study.folder.read_trial(key)
        assert known is not None
        before = study.validation(key)
        known.status = "running"
        study.folder.write_trial(known)
        train(study, [(key, known.config, stage.winner.config)], known.stage, None, stage.name)
        if not np.allclose(before, study.validation(key), atol=1e-3):
            study.say(f"the weights of {stage.name}'s winner were gone; trained again, it is not quite what it was")
