"""Chooses labels from stored probabilities, without running a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.card import write_card
from raymotion.batch.label_dataset import labels_vocabulary, load_labels, matrix_of, read_labels_record, read_parts
from raymotion.batch.preflight import check_folder, free_if_nothing_committed, remove_parts
from raymotion.batch.rates import notes_on_rates, require_rates, training_rates
from raymotion.batch.uncertain import SelectSettings, choose_uncertain
from raymotion.config import digest_of
from raymotion.data.parts import JOB, VERIFY, FileMark, part_marks, read_job, write_job
from raymotion.errors import Damaged, InputError
from raymotion.folders.lock import one_writer_of
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.priors import estimate_rates
from raymotion.learning.selection import SelectionPolicy
from raymotion.vocabulary import Vocabulary


def with_choice(table: pa.Table, mask: np.ndarray, selected: np.ndarray, vocabulary: Vocabulary) -> pa.Table:
    """Returns `table` with a policy's choice as labels and selected: mask (n, L) bool, selected (n,) bool."""
    labels = [vocabulary.decode(np.flatnonzero(row).tolist()) for row in mask]
    for name, values in (
        ("labels", pa.array(labels, pa.list_(pa.string()))),
        ("selected", pa.array(selected.tolist(), pa.bool_())),
    ):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, pa.field(name, values.type, nullable=False), values)
    return table


def choose_globally(
    source: str,
    target: str,
    policy: SelectionPolicy,
    vocabulary: Vocabulary,
    thresholds: Sequence[float] | None,
    *,
    job_digest: str | None = None,
    model: Mapping[str, Any] | None = None,
    training: Sequence[float] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Applies a policy to the probabilities of all parts in `source` and writes the parts, with its choice, to
    `target`.

    Only probabilities and ids of the whole set are held in memory (130 bytes a row for 29 labels). Writing in place
    (`source == target`) can be interrupted and repeated: the choice depends on the probabilities only, and the commit
    names the new part before it replaces the old one.

    Args:
        job_digest: digest for the commits in another `target`; None: that of the commits in `source`.
        model: its description in the job's record, for notes on `adapt_rates`.
        training: (L,) class rates that the model was trained on, which `adapt_rates` needs.
    """
    ids: list[str] = []
    blocks: deque[np.ndarray] = deque()
    for _, table in read_parts(source, ["sample_id", "probabilities"]):
        ids.extend(table.column("sample_id").to_pylist())
        blocks.append(matrix_of(table).copy())
    matrix, start = np.empty((len(ids), len(vocabulary)), np.float32), 0
    while blocks:  # each is freed once it is copied, so that the probabilities are not held twice
        block = blocks.popleft()
        matrix[start : start + len(block)] = block
        start += len(block)
    shift = None
    if policy.adapt_rates:
        shift = estimate_rates(matrix, require_rates(training, source), weight=policy.rate_weight)
    limits = None if thresholds is None else np.asarray(thresholds)
    mask, selected = policy.choose(matrix, ids, limits, shift)
    del matrix
    choice = _write_choice(source, target, policy, mask, selected, vocabulary, job_digest)
    if shift is None:
        return choice
    rates = shift.to_dict()
    return choice | {"rates": rates, "notes": notes_on_rates(rates, vocabulary, model or {})}


def _write_choice(
    source: str,
    target: str,
    policy: SelectionPolicy,
    mask: np.ndarray,
    selected: np.ndarray,
    vocabulary: Vocabulary,
    job_digest: str | None,
) -> dict[str, Any]:
    """Writes the parts of `source` to `target` with these labels and selections; returns the record of the choice.

    Args:
        mask: (n, L) bool. selected: (n,) bool.
    """
    start = 0
    for name, table in read_parts(source):
        rows = slice(start, start + table.num_rows)
        chosen = with_choice(table, mask[rows], selected[rows], vocabulary)
        data = storage.finite_parquet(storage.join(target, name), chosen)
        _replace_part(source, target, name, data, job_digest)
        start += table.num_rows
    return {
        "selection": policy.model_dump(mode="json"),
        "selected": int(selected.sum()),
        "labels": int(mask[selected].sum()),
    }


def _replace_part(source: str, target: str, name: str, data: bytes, job_digest: str | None) -> None:
    """Writes a part and its commit, if any, so that the commit always matches the part."""
    path, mark = storage.join(target, name), FileMark.of(data)
    digits = name.rsplit("/", 1)[-1].removeprefix("part-").removesuffix(".parquet")
    shard = int(digits) if digits.isdecimal() else -1
    if not storage.exists(ledger.commit_path(source, shard)):
        storage.write_bytes(path, data)
        return
    commit = ledger.read_commit(source, shard)
    new: dict[str, Any] = {"sha256": mark.sha256, "bytes": mark.size, "tail": mark.tail}
    if source == target:
        ledger.write_commit(target, replace(commit, pending=asdict(mark)))
        storage.write_bytes(path, data)
        ledger.write_commit(target, replace(commit, **new, pending=None))
    else:
        storage.write_bytes(path, data)
        ledger.write_commit(
            target, replace(commit, **new, pending=None, sample=None, job_digest=job_digest or commit.job_digest)
        )


def check_labels(
    folder: str,
    vocabulary: Vocabulary,
    prior: Sequence[float] | None,
    validation: dict[str, Any] | None,
    notices: Sequence[str] = (),
    one_label: bool = False,
) -> dict[str, Any]:
    """Returns the collapse check of the labels in `folder` for the record: headline, collapsed, reasons, notes.

    Probabilities and choices of the whole set are held in memory (150 bytes a row for 29 labels).

    Args:
        notices: notices of the job; those that void its labels prevent a passing verdict.
        one_label: whether exactly one label applies to a sample.
    """
    evaluation = None if validation is None else Evaluation.from_dict(validation)
    rates = None if prior is None else np.asarray(prior, dtype=np.float64)
    found = replace(load_labels(folder), prior=rates, evaluation=evaluation).check_collapse(notices, one_label)
    return {
        "headline": found.headline,
        "collapsed": found.collapsed,
        "reasons": found.reasons,
        "notes": found.notes,
    }


@one_writer_of("out")
def select(labels: storage.PathLike, out: storage.PathLike, policy: SelectionPolicy) -> dict[str, Any]:
    """Writes a labelled data set with the choice of another policy to `out`; returns its record.

    Parts, quarantine and commits are the same except for the columns labels and selected. The policy `uncertain` keeps
    the labels, and with them the collapse check.
    """
    source, target = storage.absolute(labels), storage.absolute(out)
    record = read_labels_record(source)
    vocabulary = labels_vocabulary(record, source)
    if source != target:
        _discard_unfinished(target)
    if source == target or storage.exists(storage.join(target, JOB)):
        raise InputError("holds a data set", path=target, remedy="Name a fresh --out.")
    check_folder(target)
    one_label = bool(record["model"].get("one_label"))
    if one_label:
        policy = policy.for_one_label()
    thresholds = record["model"].get("thresholds")
    training = training_rates(record, source) if policy.adapt_rates else None
    settings = {**record["settings"], "selection": policy.model_dump(mode="json")}
    identity = {**record["identity"], "selection": policy.model_dump(mode="json")}
    digest = digest_of(identity)
    chosen = {**record, "digest": digest, "settings": settings, "identity": identity, "selected_from": source}
    # Until all parts are written, the record marks the folder as unfinished.
    write_job(target, {**chosen, "status": "running"})
    uncertain = policy if isinstance(policy, SelectSettings) and policy.is_uncertain else None
    if uncertain is not None:
        found = choose_uncertain(source, uncertain)
        choice = _write_choice(source, target, policy, found.mask, found.selected, vocabulary, digest)
        # Labels stay, and so do the rates that they were chosen by; those of the uncertainty are others.
        known = {"rates": (record.get("choice") or {}).get("rates"), "uncertainty_rates": found.rates}
        told = {name: rates for name, rates in known.items() if rates}
        notes = [note for rates in told.values() for note in notes_on_rates(rates, vocabulary, record["model"])]
        choice |= {**told, "notes": list(dict.fromkeys([*notes, *found.notes]))}
    else:
        choice = choose_globally(
            source, target, policy, vocabulary, thresholds,
            job_digest=digest, model=record["model"], training=training,
        )  # fmt: skip
    for name, marks in part_marks(source, quarantine=True).items():
        path = storage.join(source, name)
        data = storage.require(path)
        if marks and FileMark.of(data).sha256 not in {mark.sha256 for mark in marks}:
            raise Damaged("is not what was committed", path=path, remedy=VERIFY)
        storage.write_bytes(storage.join(target, name), data)
    if storage.exists(manifest := storage.join(source, ledger.MANIFEST)):
        storage.write_bytes(storage.join(target, ledger.MANIFEST), storage.read_bytes(manifest))
    model, collapse = record["model"], record.get("collapse")
    if collapse is None or uncertain is None:
        collapse = check_labels(
            target, vocabulary, model.get("prior"), model.get("validation"), record.get("notices") or (),
            one_label,
        )  # fmt: skip
    chosen |= {"choice": choice, "collapse": collapse}
    write_card(target, chosen)
    write_job(target, chosen)
    return chosen


def _discard_unfinished(target: str) -> None:
    """Removes the remains of an interrupted `select`, which takes only seconds to repeat."""
    try:
        record, _ = read_job(target)
    except InputError:
        return
    if record is not None and "selected_from" in record and record.get("status") != "complete":
        for shard in ledger.committed_shards(target):
            storage.remove(ledger.commit_path(target, shard))
        remove_parts(target)
    free_if_nothing_committed(target)
