"""Preparation of a recipe's training data: its samples, their inputs and their targets.

Imports no torch, because Ray Train's controller imports this module too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion import storage
from raymotion.config import digest_of
from raymotion.data.samples import SPLITS
from raymotion.errors import InputError
from raymotion.models.inputs.base import Prepared, require_data_settings
from raymotion.models.outputs.base import DataFacts, Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.text.label_texts import read_label_texts
from raymotion.models.training_set import TrainingSet
from raymotion.train.recipe import kind_of
from raymotion.train.source import SPLIT_AGAIN, labelled_table, pseudo_labelled


def prepare_data(recipe: TrainRecipe) -> TrainingSet:
    """Reads and checks the training data of a recipe.

    Raises:
        InputError: no targets, no splits, a group in two splits, features of other samples or pictures, pictures that
            changed since they were labelled, or an input that no sample has.
    """
    kind = kind_of(recipe)
    inputs = kind.checked_inputs(recipe)
    require_data_settings(inputs, recipe)
    given: np.ndarray | None = None
    labels, holdout = getattr(recipe.data, "labels", None), recipe.data.holdout_domain
    left_out: dict[str, int] = {}
    if labels:
        if holdout:
            raise InputError(
                "setting data.holdout_domain: pseudo-labels have no domain to test on",
                path=labels,
                remedy="Leave it out, and score the student with `raymotion evaluate --holdout-domain`.",
            )
        path = storage.absolute(labels)
        table, given = pseudo_labelled(path, recipe.data.val_fraction, recipe.seed)  # type: ignore[attr-defined]
    else:
        path = storage.absolute(recipe.data.samples)
        table, left_out = labelled_table(path, holdout)
    facts = DataFacts.of(table, path)
    outputs = kind.checked_outputs(recipe, facts, prepared=True)
    targets = {own.name: own.read(table, where=path, given=given if own.vocabulary else None) for own in outputs}
    # Every sample needs a target of the first output; some may lack those of further outputs.
    known = targets[outputs[0].name].known
    counts = {"rows": table.num_rows + sum(left_out.values()), **left_out, "without_labels": int((~known).sum())}
    in_split = np.asarray(pc.is_valid(table.column("split")))
    counts["without_split"] = int((known & ~in_split).sum())
    rows = np.flatnonzero(known & in_split)
    if not len(rows):
        raise InputError(
            f"no row of a split has {outputs[0].target_noun}, which the model learns",
            path=path,
            remedy="Use a table that has some, or another recipe.",
        )
    table, targets = table.take(pa.array(rows)), {name: own.take(rows) for name, own in targets.items()}

    prepared: dict[str, Prepared] = {own.name: own.prepare(table, recipe, where=path) for own in inputs}
    for of in prepared.values():
        counts |= of.counts
    keep = np.flatnonzero(np.stack([of.present for of in prepared.values()]).any(axis=0))
    counts["without_input"] = table.num_rows - len(keep)
    table, targets = table.take(pa.array(keep)), {name: own.take(keep) for name, own in targets.items()}
    splits_of = np.array(table.column("split").to_pylist())
    data = TrainingSet(
        sample_ids=table.column("sample_id").to_pylist(),
        groups=table.column("group_id").to_pylist(),
        splits={name: np.flatnonzero(splits_of == name) for name in SPLITS},
        inputs={name: of.take(keep) for name, of in prepared.items()},
        targets=targets,
        facts=facts,
        counts=counts,
        name=path.rstrip("/").rsplit("/", 1)[-1],
    )
    for name in ("train", "val"):
        if not len(data.splits[name]):
            needed = " or ".join(own.noun for own in inputs)
            without = f" without {', '.join(holdout)}" if holdout else ""
            raise InputError(
                f"has no sample of the split {name} with labels and {needed}{without}", path=path, remedy=SPLIT_AGAIN
            )
    if holdout and not len(data.splits["test"]):
        raise InputError(f"has no sample of {', '.join(holdout)} with labels to test on", path=path)
    # Not of those that only other recipes of a search have.
    for output in kind.checked_outputs(recipe, facts):
        output.require(targets[output.name], data.splits, where=path)
    # A fingerprint of the contents, not of the files: another Parquet version writes the same samples differently.
    contents: list[Any] = [data.sample_ids, data.groups, splits_of.tolist()]
    contents += [own.contents(targets[own.name]) for own in outputs]
    contents += [of.contents() for of in data.inputs.values()]
    if recipe.probe is not None and recipe.probe.labels is not None:
        data.label_texts = _label_texts(recipe.probe.labels, outputs, data)
        contents.append(data.label_texts)
    data.fingerprint = digest_of(contents)
    return data


def _label_texts(source: str, outputs: Sequence[Output], data: TrainingSet) -> dict[str, list[list[str]]]:
    """Reads `Probe.labels` here, because workers may have no access to the file."""
    found = {own.name: read_label_texts(source, own.vocabulary) for own in outputs if own.vocabulary is not None}
    if not found:
        raise InputError("setting probe.labels: the model predicts numbers, not labels", path=data.name)
    return found
