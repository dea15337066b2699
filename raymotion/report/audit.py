"""The label audit, in three modes that depend on the available labels.

`audit_against_truth` measures the agreement of pseudo-labels with human labels of the same images.
`audit_samples` finds doubtful human labels by confident learning, on predictions of a model not trained on them.
`audit_choices` finds disagreements between the chosen pseudo-labels and their own probabilities. Both come from one
model, so it finds errors of the selection only, not of the model.

Each writes audit.json, per_emotion.csv, disagreements.parquet and audit.html. docs/audit.md explains how to read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from raymotion import records, storage
from raymotion.batch.label_dataset import LabelledSet, load_labels
from raymotion.config import Settings
from raymotion.data.samples import vocabulary_of
from raymotion.errors import InputError
from raymotion.evaluation.agreement import compare
from raymotion.evaluation.confident import find_issues
from raymotion.evaluation.disagreements import Disagreements, rank_disagreements
from raymotion.evaluation.matched_pictures import check_matched
from raymotion.evaluation.matching import Key, Match, Persons, match
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.label_mapping import LabelMapping, choose_mapping
from raymotion.report.cards import ReviewLink
from raymotion.report.review import write_review
from raymotion.text_table import csv_text

FILES = ("audit.json", "per_emotion.csv", "disagreements.parquet", "audit.html")
FORMAT = 1
CIRCULAR = (
    "The labels were chosen from these very probabilities, by one model. So this says nothing about the model's own "
    "errors: it shows where the selection and the probabilities part ways. For errors, give human labels: --truth, "
    "or audit human labels with --predictions."
)
FLATTERED = (
    "{learned:,} of the {rows:,} matched rows are of the split train: if the model learned from them, these figures "
    "flatter it."
)
OUT_OF_SAMPLE = (
    "Sound only if the model was not trained on these labels: a model that has seen a wrong label predicts it again."
)


class AuditSettings(Settings):
    """Settings of an audit; `mapping`, `on` and `persons` apply to human labels only.

    Attributes:
        review: folder to write a review of the labels to (`report.review`), to which the page's numbers lead.
    """

    mapping: str | None = None
    on: Key = "auto"
    persons: Persons = "union"
    examples: int = Field(24, ge=0, le=500)
    bootstrap: int = Field(1000, ge=0)
    seed: int = 0
    review: str | None = Field(None, exclude=True)  # where a page goes is not a setting of the figures


@dataclass(frozen=True)
class AuditSummary:
    """Result of an audit: `record` is the content of audit.json, `files` lists the files written."""

    out: str
    record: Mapping[str, Any]
    files: list[str]


@one_writer_of("out")
def audit_against_truth(
    labels: storage.PathLike, truth: storage.PathLike, out: storage.PathLike, settings: AuditSettings
) -> AuditSummary:
    """Compares the pseudo-labels in the folder `labels` with the human labels of the sample table `truth`.

    Raises:
        InputError: no rows match, matched rows are of different pictures, the vocabularies differ and no mapping is
            given, or `out` holds other files.
    """
    _check_out(out)
    labelled = _labels(labels)
    table = labelled.read_truth(truth)
    vocabulary = vocabulary_of(table, where=truth)
    if vocabulary is None:
        raise InputError("has no labels to compare with", path=truth, remedy="Give samples that people labelled.")
    mapping = choose_mapping(settings.mapping, labelled.vocabulary, vocabulary, here=str(labels), there=str(truth))
    ids, pictures = labelled.pictures()
    found = match(ids, [own.uri for own in pictures], table, on=settings.on, where=truth)
    unsure = check_matched(found, pictures, table, where=truth, since=labelled.begun)
    columns = mapping.positions
    targets = found.targets(settings.persons)[:, columns]
    shares = found.shares[:, columns] if settings.persons == "share" else None
    probabilities = mapping.probabilities(labelled.probabilities[found.rows])
    mask, selected = mapping.chosen(labelled.mask[found.rows]), labelled.selected[found.rows]
    notes = [*_unfinished(labelled), *found.explain(), *unsure, *([mapping.note] if mapping.note else [])]
    learned = _training_rows(table, found)
    if learned:
        notes.insert(0, FLATTERED.format(learned=learned, rows=len(found)))
    if any(len(own) > 1 for own in mapping.sources):
        notes.append(
            "Where several labels say one category, it has the highest of their probabilities, which is not a "
            "calibrated probability of the category itself."
        )
    if found.persons.max() > 1:
        how = "one of them" if settings.persons == "union" else "at least half of them"
        notes.append(
            f"{int((found.persons > 1).sum()):,} images show several people: an image carries what {how} "
            f"{'carries' if settings.persons == 'union' else 'carry'}."
        )
    groups = _persons_of(table, found)
    if groups is not None:
        notes.append(
            f"The {len(groups):,} rows are of {len(set(groups)):,} images or scenes: intervals draw whole ones."
        )
    if labelled.prior is None:
        notes.append("The job does not record the class rates of training: the prior is that of the matched images.")
        prior = targets.mean(axis=0)
    else:
        prior = mapping.probabilities(labelled.prior[None])[0]
    if not selected.all():
        notes.append(f"Chosen labels are compared on the {int(selected.sum()):,} selected images of these.")
    result = compare(
        probabilities,
        mask,
        selected,
        targets,
        prior=prior,
        labels=mapping.categories,
        words=[[labelled.vocabulary.labels[i] for i in own] for own in mapping.sources],
        shares=shares,
        groups=groups,
        bootstrap=settings.bootstrap,
        seed=settings.seed,
    )
    wrong = (mask != (targets > 0)) & selected[:, None]
    listed = rank_disagreements(
        labelled, found.rows, wrong, probabilities, given=targets > 0, predicted=mask,
        names=mapping.categories, kinds=("miss", "false alarm"), persons=found.persons,
    )  # fmt: skip
    record = {
        **_head("human-labels", settings, notes, _source(labelled)),
        "truth": {"path": storage.absolute(truth), "rows": table.num_rows, "vocabulary": vocabulary.to_dict()},
        "match": {"on": found.key, "persons": settings.persons, **found.counts, "trained_on": learned},
        "mapping": mapping.to_dict(),
        "results": {**result.to_dict(), "disagreements": len(listed), "silent": _silent(found, mapping, groups)},
    }
    return _write(out, record, [asdict(row) for row in result.emotions], listed, labelled, settings)


@one_writer_of("out")
def audit_samples(
    samples: storage.PathLike, predictions: storage.PathLike, out: storage.PathLike, settings: AuditSettings
) -> AuditSummary:
    """Finds doubtful human labels by confident learning on out-of-sample probabilities.

    Args:
        samples: a sample table with labels.
        predictions: the folder of `raymotion label` or `raymotion evaluate` on the same samples, joined by sample_id.

    Raises:
        InputError: different vocabularies, no common sample, a sample with a different picture, or `out` holds other
            files.
    """
    _check_out(out)
    if settings.mapping is not None:
        raise InputError("--mapping is for --truth: with --predictions both have one vocabulary")
    folder = str(predictions)
    notes = [OUT_OF_SAMPLE]
    if storage.exists(storage.join(folder, "evaluation.json")):
        remedy = "Run the same `raymotion evaluate` command again: it writes it anew."
        caution = records.read_record(storage.join(folder, "evaluation.json"), remedy=remedy).get("caution")
        notes += [str(caution)] if caution else []
        folder = storage.join(folder, "predictions")
    labelled = load_labels(folder)
    table = labelled.read_truth(samples)
    vocabulary = vocabulary_of(table, where=samples)
    if vocabulary is None:
        raise InputError("has no labels to audit", path=samples, remedy="Give samples that people labelled.")
    labelled.vocabulary.require_same(vocabulary, here=folder, there=str(samples))
    ids, pictures = labelled.pictures()
    found = match(ids, [own.uri for own in pictures], table, on="sample", where=samples)
    unsure = check_matched(
        found, pictures, table, where=samples, since=labelled.begun, remedy="Give predictions of these samples."
    )
    notes += [*_unfinished(labelled), *found.explain(), *unsure]
    learned = _training_rows(table, found)
    if learned:
        notes.append(
            f"{learned:,} of these samples are of the split train: if the model learned from them, what it says there "
            "is no evidence."
        )
    one = labelled.one_label
    rows = [own[0] for own in found.truth_rows]
    given = labelled.one_of(table, where=samples)[rows] if one else found.shares > 0
    probabilities = labelled.probabilities[found.rows]
    issues = find_issues(
        given, probabilities, vocabulary.labels, one_label=one, groups=_persons_of(table, found),
        bootstrap=settings.bootstrap, seed=settings.seed,
    )  # fmt: skip
    listed = rank_disagreements(
        labelled, found.rows, issues.flags, probabilities, given=given, predicted=labelled.mask[found.rows],
        names=vocabulary.labels, kinds=("missing", "doubtful"), quality=issues.quality, suggested=issues.suggested,
        given_is_kind=True,
    )  # fmt: skip
    record = {
        **_head("label-quality", settings, notes, _source(labelled)),
        "truth": {"path": storage.absolute(samples), "rows": table.num_rows, "vocabulary": vocabulary.to_dict()},
        "match": {"on": found.key, **found.counts},
        "results": {**issues.to_dict(), "images": len(found)},
    }
    return _write(out, record, [asdict(row) for row in issues.emotions], listed, labelled, settings)


@one_writer_of("out")
def audit_choices(labels: storage.PathLike, out: storage.PathLike, settings: AuditSettings) -> AuditSummary:
    """Compares the chosen pseudo-labels with their own probabilities. Read `CIRCULAR` before using the numbers.

    Raises:
        InputError: no image was selected, or `out` holds other files.
    """
    _check_out(out)
    if settings.mapping is not None:
        raise InputError("--mapping is for --truth, which was not given")
    labelled = _labels(labels)
    rows = np.flatnonzero(labelled.selected)
    if not len(rows):
        raise InputError("no image was selected: there are no labels to audit", path=labels)
    given, probabilities = labelled.mask[rows], labelled.probabilities[rows]
    names = labelled.vocabulary.labels
    # Thresholds choose several labels of an image or none, even of a model of one.
    one = labelled.one_label and bool((given.sum(axis=1) == 1).all())
    issues = find_issues(
        given, probabilities, names, one_label=one, need_skill=False, bootstrap=min(settings.bootstrap, 50),
        seed=settings.seed,
    )  # fmt: skip
    listed = rank_disagreements(
        labelled, rows, issues.flags, probabilities, given=given, predicted=given,
        names=names, kinds=("missing", "doubtful"), quality=issues.quality, suggested=issues.suggested,
        given_is_kind=True,
    )  # fmt: skip
    notes = [CIRCULAR, *_unfinished(labelled)]
    headline = labelled.recorded("collapse", "headline")
    if headline:
        notes.append(f"The labelling job's own check: {headline}")
    if len(rows) < len(labelled):
        notes.append(f"{len(labelled) - len(rows):,} images that were not selected are left out.")
    record = {
        **_head("own-choices", settings, notes, _source(labelled)),
        "results": {**issues.to_dict(), "images": len(rows)},
    }
    return _write(out, record, [asdict(row) for row in issues.emotions], listed, labelled, settings)


def _persons_of(table: Any, found: Match) -> list[str] | None:
    """Returns the image of each matched row, if several rows are of one image; else None."""
    images = table.column("group_id").take([own[0] for own in found.truth_rows]).to_pylist()
    return images if len(set(images)) < len(images) else None


def _silent(found: Match, mapping: LabelMapping, groups: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the categories that no label says, each with the number of compared images of which people say it."""
    said = found.targets("union")
    names = np.arange(len(found)) if groups is None else np.array(groups)
    return [
        {"label": name, "images": len(set(names[said[:, mapping.target.index(name)] > 0].tolist()))}
        for name in mapping.unsaid
    ]


def _unfinished(labelled: LabelledSet) -> list[str]:
    return [labelled.unfinished] if labelled.unfinished else []


def _labels(folder: storage.PathLike) -> LabelledSet:
    if storage.exists(folder) and not storage.is_dir(folder):
        raise InputError(
            "is a file, not a folder of `raymotion label`",
            path=folder,
            remedy="A sample table with human labels is audited with --predictions DIR.",
        )
    return load_labels(folder)


def _training_rows(table: Any, found: Match) -> int:
    rows = [row for own in found.truth_rows for row in own]
    return pc.sum(pc.equal(table.column("split").take(rows), "train")).as_py() or 0


def _source(labelled: LabelledSet) -> dict[str, Any]:
    return {
        "path": storage.absolute(labelled.folder),
        "images": len(labelled),
        "selected": int(labelled.selected.sum()),
        "digest": labelled.recorded("digest"),
        "model": labelled.recorded("model", "fingerprint"),
        "reads": labelled.recorded("model", "reads"),
        "selection": labelled.recorded("settings", "selection"),
        "vocabulary": labelled.vocabulary.to_dict(),
        "notices": labelled.recorded("notices") or [],
    }


def _head(mode: str, settings: AuditSettings, notes: Sequence[str], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the common first part of audit.json. It has no times, so that equal audits give equal files."""
    return {
        "kind": "audit",
        "format": FORMAT,
        "mode": mode,
        "notes": list(notes),
        "settings": settings.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("raymotion", "cleanlab", "numpy")},
        "labels": dict(labels),
    }


def _check_out(out: storage.PathLike) -> None:
    there = [name for name in storage.list_names(out) if not name.startswith(".")]
    # The page is written first: if it is there, the other files belong to an audit too.
    ours = FILES if "audit.html" in there else ("audit.json",)
    strange = [name for name in there if name not in ours]
    if strange:
        raise InputError(
            f"holds {strange[0]}, which is not part of an audit", path=out, remedy="Use a fresh output folder."
        )
    outputs.require_replaceable(storage.join(out, "audit.json"), "an audit", lambda head: b'"kind": "audit"' in head)
    outputs.require_replaceable(storage.join(out, "audit.html"), "an audit", outputs.is_page)


def _write(
    out: storage.PathLike,
    record: dict[str, Any],
    emotions: list[dict[str, Any]],
    listed: Disagreements,
    labelled: LabelledSet,
    settings: AuditSettings,
) -> AuditSummary:
    from raymotion.report.audit_page import render

    place = storage.absolute(out)
    storage.make_dir(place)
    record = json.loads(json.dumps(record, allow_nan=False))  # the same values as in audit.json
    review = None
    if settings.review is not None:
        people = record.get("truth")
        same = (
            people is not None
            and record["match"]["on"] == "sample"
            and people["vocabulary"]["labels"] == list(labelled.vocabulary.labels)
        )
        truth = people["path"] if people is not None and same else None
        write_review(labelled.folder, settings.review, everything=True, truth=truth)
        review = ReviewLink(storage.join(place, "audit.html"), settings.review, compared=truth is not None)
    page = render(record, listed.gallery(settings.examples), labelled, review)
    storage.write_bytes(storage.join(place, "audit.html"), page.encode("utf-8", errors="replace"))  # see _check_out
    storage.write_text(storage.join(place, "per_emotion.csv"), _csv(emotions))
    storage.write_table(storage.join(place, "disagreements.parquet"), listed.table())
    storage.write_json(storage.join(place, "audit.json"), record)  # last, so that it marks a complete audit
    return AuditSummary(place, record, [storage.join(place, name) for name in FILES])


def _csv(rows: list[dict[str, Any]]) -> str:
    found = [{**row, "words": " ".join(row["words"])} if "words" in row else row for row in rows]
    return csv_text(list(found[0]), [list(row.values()) for row in found])
