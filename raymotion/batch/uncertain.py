"""Chooses the rows of a labelled data set that a person should look at first: `select --policy uncertain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from raymotion import storage
from raymotion.batch.label_dataset import LabelledSet, load_labels, read_labels_record
from raymotion.batch.ledger import MANIFEST
from raymotion.batch.rates import adapted, training_rates
from raymotion.config import Folder, Metavar, PathText
from raymotion.data.parts import part_names
from raymotion.data.provenance import begun_at, read_made_from, require_same_pictures
from raymotion.data.samples import read_samples
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy, sample_rows
from raymotion.learning.uncertainty import OF_ONE_MODEL, disagreement, margin, pick_rows

UNCERTAIN = "uncertain"


class SelectSettings(SelectionPolicy):
    """The settings of `raymotion select`: the policies of labelling, and one that needs labels already."""

    USED: ClassVar[dict[str, set[str]]] = {
        **SelectionPolicy.USED,
        UNCERTAIN: {"count", "measure", "against", "reviewed"},
    }

    policy: Literal["top-per-image", "threshold", "class-thresholds", "top-per-class", "uncertain"] = Field(  # type: ignore[assignment]
        "top-per-image",
        description=f"{SelectionPolicy.model_fields['policy'].description}. uncertain: the labels stay, and the "
        "--count rows are selected that a person should look at first, balanced over the labels, one of each group",
    )
    count: int = Field(
        4,
        ge=1,
        description="labels per image (of a model of one label 1), images per class, or rows to look at (uncertain)",
    )
    measure: Literal["entropy", "margin", "disagreement"] | None = Field(
        None,
        description="with uncertain: entropy (of a model of one label that of its distribution, else the mean of the "
        "labels'), small margin between the two most probable labels, or disagreement with the models of --against  "
        "[default: entropy, or disagreement with --against]",
    )
    against: tuple[Folder, ...] | None = Field(
        None,
        description="with uncertain: the same samples as labelled by another model, or by another seed of it (repeat "
        "for several)",
    )
    reviewed: tuple[Annotated[PathText, Metavar("SAMPLES")], ...] | None = Field(
        None, description="with uncertain: sample table of rows that people have looked at; their groups are left out"
    )

    @model_validator(mode="after")
    def _whole(self) -> Any:
        if self.policy == UNCERTAIN and "count" not in self.model_fields_set:
            raise ValueError("--policy uncertain needs --count, the number of rows to look at")
        if (self.measure in OF_ONE_MODEL) if self.against else (self.measure == "disagreement"):
            raise ValueError("the measure disagreement needs --against, and the others do not use it")
        return self

    @property
    def is_uncertain(self) -> bool:
        """Whether rows are selected for a person, and labels stay."""
        return self.policy == UNCERTAIN


@dataclass(frozen=True)
class UncertainRows:
    """The chosen rows.

    Attributes:
        mask: (n, L) bool, the labels as they were.
        selected: (n,) bool.
        notes: what was left out, in sentences.
        rates: `PriorShift.to_dict` of the class rates that the uncertainty is corrected to (`adapt_rates`).
    """

    mask: np.ndarray
    selected: np.ndarray
    notes: list[str] = field(default_factory=list)
    rates: dict[str, Any] | None = None


def choose_uncertain(folder: str, settings: SelectSettings) -> UncertainRows:
    """Selects the rows of a labelled data set that a person should look at first (`uncertainty.pick_rows`).

    A group is that of the sample table that was labelled; in a copied folder, which has no manifest, the picture.
    Probabilities, ids and addresses of the whole set are held in memory.

    Raises:
        InputError: a folder of `against` is of another vocabulary, of other samples, of other pictures, or of a model
            of one label where the others are of independent ones.
    """
    labelled = load_labels(folder)
    ids, pictures = labelled.pictures()
    groups = _groups(folder, ids, [own.uri or name for name, own in zip(ids, pictures, strict=True)])
    notes: list[str] = []
    probabilities, rates = labelled.probabilities, None
    if settings.adapt_rates:
        probabilities, shift = adapted(probabilities, training_rates(labelled.job, folder), settings.rate_weight)
        rates = shift.to_dict()
        notes.append("uncertainty is that of the corrected probabilities; labels stay as they were chosen")
    among = sample_rows(ids, settings.sample_fraction, settings.seed)
    if settings.against:
        scores, common = _disagreement(labelled, probabilities, folder, ids, settings)
        if missing := int((~common).sum()):
            notes.append(f"{missing:,} rows are not labelled in every folder of --against, and are left out")
        among &= common
    else:
        scores = margin(probabilities) if settings.measure == "margin" else labelled.entropy(probabilities)
    done = {group for path in settings.reviewed or () for group in read_samples(path).column("group_id").to_pylist()}
    if done:
        left = sum(group in done for group in groups)
        notes.append(f"{left:,} rows are of groups that people have looked at, and are left out")
    rows = pick_rows(scores, labelled.mask, ids, groups, settings.count, seed=settings.seed, among=among, without=done)
    if len(rows) < settings.count:
        notes.append(f"there are only {len(rows):,} such groups, fewer than --count")
    selected = np.zeros(len(ids), dtype=bool)
    selected[rows] = True
    return UncertainRows(labelled.mask, selected, notes, rates)


def _groups(folder: str, ids: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return list(otherwise)
    table = storage.read_table(path, ["sample_id", "group_id"])
    group_of = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return [group_of.get(name, other) for name, other in zip(ids, otherwise, strict=True)]


def _disagreement(
    labelled: LabelledSet, probabilities: np.ndarray, folder: str, ids: Sequence[str], settings: SelectSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the disagreement of the models on each row, (n,), and which rows all of them have labelled, (n,) bool."""
    own = read_made_from(folder, part_names(folder))
    row_of = {name: row for row, name in enumerate(ids)}
    committee, common = [probabilities], np.ones(len(ids), dtype=bool)
    for place in settings.against or ():
        other = load_labels(place)
        labelled.vocabulary.require_same(other.vocabulary, here=folder, there=place)
        if other.one_label != labelled.one_label:
            kinds = "independent labels", "exactly one label a sample"
            raise InputError(
                f"is of a model of {kinds[other.one_label]}, and {folder} of {kinds[labelled.one_label]}: their "
                "probabilities mean different things", path=place, remedy="Name labels of a model of the same kind.",
            )  # fmt: skip
        made = read_made_from(place, part_names(place))
        require_same_pictures(
            own, made, what="labels", where=place, remedy="Give labels of the same pictures.",
            since=begun_at(read_labels_record(place)), need_address=False,
        )  # fmt: skip
        rows = np.array([row_of.get(name, -1) for name in made.column("sample_id").to_pylist()], dtype=np.int64)
        matrix, there = np.zeros_like(labelled.probabilities), np.zeros(len(ids), dtype=bool)
        told = other.probabilities
        if settings.adapt_rates:  # each model's by its own training
            told, _ = adapted(told, training_rates(other.job, place), settings.rate_weight)
        matrix[rows[rows >= 0]] = told[rows >= 0]
        there[rows[rows >= 0]] = True
        if not there.any():
            raise InputError(f"labels none of the samples of {folder}", path=place, remedy="Label the same table.")
        committee.append(matrix)
        common &= there
    return np.where(common, disagreement(committee, one_label=labelled.one_label), 0.0), common
