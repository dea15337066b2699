"""Evaluation of a checkpoint on labelled samples: runs the labelling job on a split, computes metrics, writes files.

The predictions are a labelling job in OUT/predictions, which runs on a cluster, quarantines failures, and resumes after
an interruption. The rest takes seconds and is repeated by every run of the command.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from raymotion import records, storage
from raymotion.batch.job import JobSummary
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.ledger import by_image
from raymotion.batch.preflight import input_digest, read_record
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import REMEDY, ModelJobSettings, one_or_several, with_its_access
from raymotion.config import Metavar, digest_of, require_same_settings
from raymotion.data.domains import domain_values, hold_out, rows_of_domains
from raymotion.data.samples import SPLITS, read_samples, targets, with_optional
from raymotion.errors import Damaged, InputError
from raymotion.evaluation.classes import LabelResult, MeasuredClasses, confusion_csv, measure_classes
from raymotion.evaluation.corruption import Condition, measure_corruption, parse_corruption, require_streams
from raymotion.evaluation.measure import ClassResult, Measured, measure
from raymotion.evaluation.retrieval import Retrieval, expanded, is_by_caption, measure_retrieval, queries_csv
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.learning.metrics.calibration import BINS
from raymotion.learning.metrics.dimensions import ErrorBin, error_by_bin, evaluate_dimensions, flat_notice
from raymotion.learning.metrics.multilabel import Evaluation, evaluate
from raymotion.learning.metrics.single_label import evaluate_classes
from raymotion.learning.selection import top_per_image
from raymotion.learning.significance import FEWEST_IMAGES
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info, sample_mark
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.dimensions import VALUES, Dimensions, column_mean
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.single_label import HARD, SOFT, SingleLabel
from raymotion.pipeline.plan import input_columns, output_columns
from raymotion.text_table import csv_text

PREDICTIONS, SAMPLES, BY_FILE = "predictions", "samples.parquet", "by.csv"
# Metadata that marks the table of chosen samples; only a table with this mark is replaced.
MADE_BY = {b"made_by": b"raymotion evaluate"}
FORMAT = 1
# Class rates that differ by more than this come from different training splits.
OTHER_RATES = 0.02
OTHER_PRIOR = (
    "The checkpoint was trained on labels with other class rates: the prior is that of the table's train split."
)
NO_PRIOR = "The checkpoint records no class rates: the prior is that of the scored samples themselves."
OTHERS_SPLIT = (
    "The table's splits call some of these samples training or validation; by their sample_id, this model has learned "
    "from none of them."
)
MADE_ELSEWHERE = "The model was not trained here, so the table's splits do not say whether it knows these samples."
NO_SHARES = (
    "The table has no train split to take mean shares from: the prior's {metric} is that of the rates of hard labels, "
    "which is easy to beat. Look at the constant."
)


class EvaluateSettings(ModelJobSettings):
    """Settings of `raymotion evaluate`."""

    model: Annotated[str, Metavar("MODEL")] = Field(description="checkpoint: a folder or an address")
    split: Literal["train", "val", "test", "all"] | None = Field(
        None, description="samples to score  [default: test where the table names splits, else all]"
    )
    holdout_domain: tuple[Annotated[str, Metavar("COLUMN=VALUE")], ...] = Field(
        (), description="score only the rows of this domain, whatever their split (repeatable)"
    )
    by: Annotated[str, Metavar("COLUMN")] | None = Field(
        None, description="also score the rows of each value of a text column, such as source"
    )
    soft: bool = Field(
        False, description="measure the BCE (log loss of one label) against the share of annotators (label_weights)"
    )
    bootstrap: int = Field(1000, ge=0, description="resamples of the 95 % intervals; 0: none")
    bins: int = Field(BINS, ge=1, le=1000, description="bins of the calibration")
    corrupt: tuple[Annotated[str, Metavar("[STREAM=]SHARE")], ...] = Field(
        (),
        description="also score cached features (--features) of which this share is replaced by noise: of each stream "
        "alone and of all, or of STREAM (repeatable)",
    )
    corrupt_space: Literal["standardised", "raw"] = Field(
        "standardised",
        description="what --corrupt draws from N(0, 1): standardised features, or raw ones, as the public EMOTIC code "
        "did, whatever their size",
    )
    seed: int = Field(0, description="seed of the resamples, and of --corrupt")

    _several_shares = field_validator("corrupt", mode="before")(one_or_several)


@dataclass(frozen=True)
class Labels:
    """Results of an output with a vocabulary; targets and probabilities are (n, L).

    Attributes:
        by: results of the rows of each value of the column `EvaluateSettings.by`, the most frequent first.
    """

    measured: Measured
    targets: np.ndarray
    probabilities: np.ndarray
    by: Mapping[str, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True)
class Classes:
    """Results of an output of which exactly one label applies; targets and probabilities are (n, L).

    Attributes:
        rows: (n,) the scored samples, of those predicted, that have a target.
        by: see `Labels`.
    """

    output: str
    subject: str
    measured: MeasuredClasses
    targets: np.ndarray
    probabilities: np.ndarray
    rows: np.ndarray
    by: Mapping[str, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True)
class Numbers:
    """Results of a numeric output, on its scale.

    Attributes:
        names: the D dimensions.
        truth, values: (n, D); NaN in `truth` marks unknown values.
        by_bin: for each dimension, the errors by the true value.
        flat: says that predictions hardly vary; None if they do.
        by: see `Labels`.
    """

    output: str
    names: tuple[str, ...]
    scale: tuple[float, float]
    truth: np.ndarray
    values: np.ndarray
    evaluation: Evaluation
    by_bin: Mapping[str, Sequence[ErrorBin]] = field(default_factory=dict)
    flat: str | None = None
    by: Mapping[str, Evaluation] = field(default_factory=dict)


# Arguments: the output folder, the record of evaluation.json, and the results of labels, of numbers, of one label, and
# of vectors.
PageWriter = Callable[
    [str, Mapping[str, Any], "Labels | None", Sequence[Numbers], Sequence[Classes], Sequence[Retrieval]], None
]


@dataclass(frozen=True)
class Choice:
    """The samples to score.

    Attributes:
        table: labelled rows of the split.
        split: train, val, test or all.
        without_labels: unlabelled rows of the split, which are left out.
        caution: why the metrics are, or may be, optimistic; None if the samples influenced neither training nor model
            selection.
    """

    table: pa.Table
    split: str
    without_labels: int
    caution: str | None


@dataclass(frozen=True)
class EvaluationSummary:
    """The result of an evaluation; `record` is its evaluation.json."""

    out: str
    record: Mapping[str, Any]
    labels: Labels | None
    numbers: tuple[Numbers, ...]
    caution: str | None
    job: JobSummary
    classes: tuple[Classes, ...] = ()
    retrieval: tuple[Retrieval, ...] = ()


@with_its_access
@one_writer_of("settings.out")
def evaluate_checkpoint(
    settings: EvaluateSettings,
    *,
    address: str | None = None,
    progress: ProgressKind = "auto",
    write_page: PageWriter | None = None,
) -> EvaluationSummary:
    """Evaluates a checkpoint and writes the results; a repeated call resumes the predictions and measures again.

    Args:
        write_page: `report.evaluation_page.write`; None: no page and no plots.

    Raises:
        InputError: no labels, no such split, a vocabulary other than the checkpoint's, or any error of `label`.
        SettingsMismatch: the folder holds an evaluation of another checkpoint or of other samples.
    """
    out = storage.absolute(settings.out)
    info = read_checkpoint_info(settings.model)
    samples = read_samples(settings.samples)
    for own in info.outputs:  # refuses another vocabulary before anything is predicted
        if own.vocabulary is not None:
            own.read(samples.slice(0, 0), where=settings.samples)
    chosen, split = samples, settings.split
    if settings.holdout_domain:
        chosen = samples.filter(pa.array(rows_of_domains(samples, settings.holdout_domain, where=settings.samples)))
        split = split or "all"
    if settings.by is not None:
        if not {own.gives for own in info.outputs} & {"labels", "one_label", "numbers"}:
            raise InputError("predicts no labels or numbers", path=settings.model, remedy="Leave --by out.")
        domain_values(chosen, settings.by, where=settings.samples)
    choice = choose_samples(chosen, info.outputs[0], split, where=settings.samples)
    choice, others = by_record(choice, info, settings.holdout_domain)
    training = _training_rows(settings, info, samples)
    if settings.soft and (info.labels is None or not info.labels.reads_labels):
        raise InputError("learns no labels of annotators", path=settings.model, remedy="Leave --soft out.")
    if settings.soft and choice.table.column("label_weights").null_count == choice.table.num_rows:
        raise InputError("has no label_weights", path=settings.samples, remedy="Leave --soft out.")
    by_caption = is_by_caption(info.outputs)
    if by_caption:
        choice = replace(choice, table=expanded(choice.table, cached=settings.features is not None))
    streams = shares = None
    if settings.corrupt:  # refused before anything is predicted
        streams = require_streams(info, settings.features, settings.ablation)
        shares = parse_corruption(settings.corrupt, [own.stream for own in streams.kept])
    job = _predict(settings, info, choice, out, address, progress)

    ids, predicted = _predictions(storage.join(out, PREDICTIONS), info.outputs)
    if not ids:
        raise InputError(
            "no sample could be predicted: all are in quarantine",
            path=storage.join(out, PREDICTIONS),
            remedy="See its quarantine, and use a fresh --out.",
        )
    place = {sample_id: row for row, sample_id in enumerate(choice.table.column("sample_id").to_pylist())}
    rows = choice.table.take([place[sample_id] for sample_id in ids])
    notices = [str(notice) for notice in job.record["notices"]]
    if others is not None:
        notices.append(others)
    ids_of_groups = rows.column("group_id").to_pylist()
    images = len(set(ids_of_groups))
    groups = ids_of_groups if images < len(ids_of_groups) else None
    if groups is not None and not by_caption:
        notices.append(f"The {len(groups):,} samples are of {images:,} images or scenes: intervals draw whole ones.")
    labels: Labels | None = None
    classes: list[Classes] = []
    numbers: list[Numbers] = []
    retrieval: list[Retrieval] = []
    for own in info.outputs:
        values = predicted[own.name]
        if own.gives == "labels" and own is info.labels:
            labels = _measure_labels(settings, info, training, rows, values, groups, choice, notices)
        elif own.gives == "one_label":
            one = _measure_classes(settings, info, cast(SingleLabel, own), training, rows, values, choice, notices)
            classes += [] if one is None else [one]
        elif own.gives == "numbers":
            few = _measure_numbers(settings, info, cast(Dimensions, own), training, rows, values, groups, notices)
            numbers += [] if few is None else [few]
        elif own.gives == "vectors":
            pairs = measure_retrieval(
                cast(Embedding, own), values, rows, by_caption=by_caption, bootstrap=settings.bootstrap,
                seed=settings.seed, notices=notices,
            )  # fmt: skip
            retrieval += [] if pairs is None else [pairs]
    if len(info.outputs) == 1 and info.outputs[0].gives == "vectors" and not retrieval:
        raise InputError(notices[-1].rstrip("."), path=storage.join(out, PREDICTIONS), remedy="See its quarantine.")
    notices = [notice for notice in notices if notice not in {own.flat for own in retrieval}]  # told with its figures
    conditions: list[Condition] = []
    if streams is not None and shares is not None and settings.features is not None:
        conditions = measure_corruption(
            info, rows, own=streams, features=settings.features, shares=shares, space=settings.corrupt_space,
            groups=groups, bootstrap=settings.bootstrap, seed=settings.seed, where=settings.samples,
        )  # fmt: skip
    record = _record(settings, info, choice, rows, job, labels, numbers, classes, retrieval, notices)
    record["corruption"] = None
    if conditions:
        record["corruption"] = {
            "space": settings.corrupt_space, "seed": settings.seed,
            "conditions": [own.to_dict() for own in conditions],
        }  # fmt: skip
    storage.write_table(storage.join(out, "predictions.parquet"), _table(rows, info, predicted, labels))
    if labels is not None:
        storage.write_text(storage.join(out, "per_class.csv"), _csv(ClassResult, labels.measured.classes))
    for own_classes in classes:
        first = labels is None and own_classes is classes[0]
        prefix = "" if first else f"{own_classes.output}_"
        storage.write_text(storage.join(out, f"{prefix}per_class.csv"), _csv(LabelResult, own_classes.measured.classes))
        storage.write_text(storage.join(out, f"{prefix}confusion.csv"), confusion_csv(own_classes.measured))
    for own_retrieval in retrieval:
        prefix = "" if own_retrieval is retrieval[0] else f"{own_retrieval.output}_"
        storage.write_text(storage.join(out, f"{prefix}retrieval.csv"), queries_csv(own_retrieval))
    if record["by"] is not None:
        storage.write_text(storage.join(out, BY_FILE), _by_csv(record["by"]))
    else:  # of an earlier call
        storage.remove(storage.join(out, BY_FILE))
    if write_page is not None:
        write_page(out, record, labels, numbers, classes, retrieval)
    records.write_record(storage.join(out, "evaluation.json"), record)  # written last: marks a complete evaluation
    return EvaluationSummary(
        out, record, labels, tuple(numbers), choice.caution, job, tuple(classes), tuple(retrieval)
    )  # fmt: skip


def _measure_labels(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    training: pa.Table,
    rows: pa.Table,
    probabilities: np.ndarray,
    groups: Sequence[str] | None,
    choice: Choice,
    notices: list[str],
) -> Labels:
    truth = targets(rows, info.vocabulary)
    prior, soft_prior = _priors(info, training, truth, settings.soft, notices)
    if info.thresholds is None:
        notices.append("The checkpoint holds no thresholds fitted on validation: F1 is at 0.5 for each label.")
    measured = measure(
        truth,
        probabilities,
        labels=info.vocabulary.labels,
        prior=prior,
        thresholds=info.thresholds,
        soft_targets=targets(rows, info.vocabulary, soft=True) if settings.soft else None,
        soft_prior=soft_prior,
        split=choice.split,
        bootstrap=settings.bootstrap,
        bins=settings.bins,
        seed=settings.seed,
        groups=groups,
    )
    return Labels(measured, truth, probabilities, _by_value(settings, info, rows, probabilities, prior, soft_prior))


def _by_value(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    rows: pa.Table,
    probabilities: np.ndarray,
    prior: np.ndarray,
    soft_prior: np.ndarray | None,
) -> dict[str, Evaluation]:
    """Evaluates the rows of each value of the column `by`, from the predictions of all."""
    truth = targets(rows, info.vocabulary)
    soft = targets(rows, info.vocabulary, soft=True) if settings.soft else None
    return {
        value: evaluate(
            truth[here], probabilities[here], prior=prior if soft_prior is None else soft_prior,
            labels=info.vocabulary.labels, bootstrap=settings.bootstrap, seed=settings.seed,
            soft_targets=None if soft is None else soft[here], groups=groups,
        )
        for value, here, groups in _values_of(settings.by, rows)
    }  # fmt: skip


def _values_of(column: str | None, rows: pa.Table) -> Iterator[tuple[str, np.ndarray, list[str] | None]]:
    """Yields each value of a column, the most frequent first, with its rows (bool) and their groups."""
    if column is None:
        return
    ids, values = np.array(rows.column("group_id").to_pylist()), rows.column(column)
    for value, count in sorted(Counter(values.to_pylist()).items(), key=lambda own: (-own[1], str(own[0]))):
        here = np.asarray(pc.is_null(values) if value is None else pc.fill_null(pc.equal(values, value), False))
        groups = ids[here].tolist() if len(set(ids[here].tolist())) < count else None
        yield "(none)" if value is None else value, here, groups


def _measure_classes(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    own: SingleLabel,
    training: pa.Table,
    rows: pa.Table,
    probabilities: np.ndarray,
    choice: Choice,
    notices: list[str],
) -> Classes | None:
    """Measures an output of one label; None, with a notice, if no row has a target of it."""
    found = own.read(rows, where=settings.samples)
    known = np.flatnonzero(found.known)
    if not len(known):
        notices.append(f"No scored sample has a target of {own.name}: it was not measured.")
        return None
    if len(known) < rows.num_rows:
        notices.append(f"{rows.num_rows - len(known):,} of {rows.num_rows:,} samples have no target of {own.name}.")
    if (converted := own.conversion(training, where=settings.samples)) is not None:
        notices.append(converted)
    rows, p = rows.take(known), probabilities[known]
    hard, soft = found.arrays[HARD][known], found.arrays[SOFT][known] if settings.soft else None
    learned = own.read(training, where=settings.samples)
    recorded = info.facts(own.name).get("prior")
    if learned.known.any():
        prior = learned.arrays[HARD][learned.known].mean(axis=0, dtype=np.float64)
        if recorded is not None and np.abs(prior - np.asarray(recorded)).max() > OTHER_RATES:
            notices.append(OTHER_PRIOR)
    elif recorded is not None:
        prior = np.asarray(recorded, dtype=np.float64)
    else:
        prior = hard.mean(axis=0, dtype=np.float64)
        notices.append(NO_PRIOR)
    soft_prior = None
    if settings.soft and learned.known.any():
        soft_prior = learned.arrays[SOFT][learned.known].mean(axis=0, dtype=np.float64)
    elif settings.soft:
        notices.append(NO_SHARES.format(metric="log loss"))
    ids = rows.column("group_id").to_pylist()
    options: dict[str, Any] = {
        "labels": own.vocabulary.labels, "prior": prior, "soft_prior": soft_prior, "bootstrap": settings.bootstrap,
        "seed": settings.seed,
    }  # fmt: skip
    measured = measure_classes(
        hard, p, soft_targets=soft, split=choice.split, bins=settings.bins,
        groups=ids if len(set(ids)) < len(ids) else None, **options,
    )  # fmt: skip
    by = {
        value: evaluate_classes(
            hard[here], p[here], soft_targets=None if soft is None else soft[here], groups=groups, **options
        )
        for value, here, groups in _values_of(settings.by, rows)
    }
    return Classes(own.name, own.vocabulary.name, measured, hard, p, known, by)


def _measure_numbers(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    own: Dimensions,
    training: pa.Table,
    rows: pa.Table,
    values: np.ndarray,
    groups: Sequence[str] | None,
    notices: list[str],
) -> Numbers | None:
    """Measures the dimensions that have true values, with a notice of each other; None if none has."""
    truth = own.read(rows, where=settings.samples).arrays[VALUES]
    there = np.flatnonzero(~np.isnan(truth).all(axis=0))
    notices += [f"{name}: no ratings in these samples" for j, name in enumerate(own.names) if j not in there]
    if not len(there):
        return None
    if (converted := own.conversion(training, where=settings.samples)) is not None:
        notices.append(converted)
    mean = column_mean(own.read(training, where=settings.samples).arrays[VALUES])
    told = info.facts(own.name).get("mean") or [None] * own.width
    mean = np.array([m if np.isfinite(m) else np.nan if t is None else t for m, t in zip(mean, told, strict=True)])
    names, truth, values, mean = tuple(own.names[j] for j in there), truth[:, there], values[:, there], mean[there]
    options: dict[str, Any] = {"training_mean": mean, "names": names, "seed": settings.seed}
    evaluation = evaluate_dimensions(truth, values, groups=groups, bootstrap=settings.bootstrap, **options)
    rated = np.flatnonzero(~np.isnan(truth).all(axis=1))
    by = {}
    for value, here, of in _values_of(settings.by, rows.take(rated)):
        # Of fewer images, of any dimension, the resamples hardly differ: their interval would be narrow by luck.
        known = ~np.isnan(truth[rated][here])
        unit = np.asarray(of if of else np.flatnonzero(here))
        fewest = min(len(set(unit[column].tolist())) for column in known.T if column.any())
        bootstrap = settings.bootstrap if fewest >= FEWEST_IMAGES else 0
        by[value] = evaluate_dimensions(
            truth[rated][here], values[rated][here], groups=of, bootstrap=bootstrap, **options
        )
    by_bin = {
        name: error_by_bin(truth[:, j], values[:, j], scale=own.scale, training_mean=mean[j])
        for j, name in enumerate(names)
    }
    flat = flat_notice(truth, values, names)
    return Numbers(own.name, names, own.scale, truth, values, evaluation, by_bin, flat, by)


def choose_samples(samples: pa.Table, output: Output, split: str | None, *, where: object = None) -> Choice:
    """Chooses the rows of a split that have targets of an output; by default test, or all if the table has no splits.

    Raises:
        InputError: the table or the split has no such row.
    """
    known = pa.array(output.read(samples, where=where).known)
    labelled = samples.filter(known)
    if not labelled.num_rows:
        remedy = (
            "Give samples that people labelled." if output.target_noun == "labels" else "Give samples that have some."
        )
        raise InputError(f"has no {output.target_noun} to compare with", path=where, remedy=remedy)
    there = {name: pc.sum(pc.equal(labelled.column("split"), name)).as_py() or 0 for name in SPLITS}
    chosen = split or ("test" if any(there.values()) else "all")
    if chosen != "all" and not there[chosen]:
        found = ", ".join(f"{count:,} {name}" for name, count in there.items() if count) or "none named"
        noun = output.target_noun
        one, those = ("labelled sample", "labelled") if noun == "labels" else (f"sample with {noun}", f"with {noun}")
        raise InputError(
            f"has no {one} of the split {chosen} (of {labelled.num_rows:,} {those}: {found})",
            path=where,
            remedy="Choose another --split, or all.",
        )
    inside = samples if chosen == "all" else samples.filter(pc.equal(samples.column("split"), chosen))
    table = labelled if chosen == "all" else labelled.filter(pc.equal(labelled.column("split"), chosen))
    return Choice(table, chosen, inside.num_rows - table.num_rows, _caution(chosen, there, table.num_rows, output))


def _caution(split: str, there: Mapping[str, int], rows: int, output: Output) -> str | None:
    if split == "train":
        return "These samples were trained on: the figures say how well they are remembered, not how good the model is."
    if split == "all" and there["train"]:
        return f"These samples were trained on, {there['train']:,} of {rows:,}: the figures flatter the model."
    if split == "val" or (split == "all" and there["val"]):
        what = "Epoch and thresholds were" if output.gives == "labels" else "The epoch was"
        return f"{what} chosen on validation samples, which these hold: the figures are optimistic."
    if split == "all" and not any(there.values()):
        return "The table names no splits: whether the model was trained on these samples is not known."
    return None


def by_record(choice: Choice, info: CheckpointInfo, holdout_domain: Sequence[str] = ()) -> tuple[Choice, str | None]:
    """Corrects the caution by what a model records of its training, which the splits of a table may not be.

    Returns:
        The choice, and what to tell if its splits are not the model's.
    """
    seen, data = _seen_before(info, choice.table), info.training.get("data") or {}
    # The table's splits do not say whether the model was trained on a domain, its record does.
    told = data.get("seen") is not None or {*holdout_domain} <= {*(data.get("holdout_domain") or ())}
    # A split is the table's; the model's record names what it has seen itself, and a wrapped one was not trained here.
    wrapped = bool(info.training.get("wrapped"))
    unseen = seen is None and (wrapped or data.get("seen") is not None)
    caution = seen if unseen or (holdout_domain and told) else choice.caution or seen
    others = unseen and choice.caution is not None and not holdout_domain
    return replace(choice, caution=caution), (MADE_ELSEWHERE if wrapped else OTHERS_SPLIT) if others else None


def _training_rows(settings: EvaluateSettings, info: CheckpointInfo, samples: pa.Table) -> pa.Table:
    """Returns the rows of the split train, without domains that were held out from training or are scored alone."""
    apart = list(settings.holdout_domain)
    for domain in (info.training.get("data") or {}).get("holdout_domain") or ():
        with contextlib.suppress(InputError):  # this table has no such domain
            rows_of_domains(samples, [domain], where=settings.samples)
            apart.append(domain)
    rest, _ = hold_out(samples, apart, where=settings.samples)
    return rest.filter(pc.fill_null(pc.equal(rest.column("split"), "train"), False))


def _seen_before(info: CheckpointInfo, table: pa.Table) -> str | None:
    """Returns a caution if the model was trained or selected on any of these samples, whatever their split now."""
    marks = set((info.training.get("data") or {}).get("seen") or ())
    seen = sum(sample_mark(sample_id) in marks for sample_id in table.column("sample_id").to_pylist())
    if not seen:
        return None
    return (
        f"{seen:,} of these {table.num_rows:,} samples, by their sample_id, were in the model's training or validation "
        "split. The figures flatter the model."
    )


def _predict(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    choice: Choice,
    out: str,
    address: str | None,
    progress: ProgressKind,
) -> JobSummary:
    """Writes the chosen rows to their own table and runs the labelling job on it."""
    folder, path = storage.join(out, PREDICTIONS), storage.join(out, SAMPLES)
    try:
        old = read_record(folder, "labels")
        lost = old is None and bool(storage.list_names(storage.join(folder, "_commits")))
    except Damaged:  # the job restores the record from its commits, or raises this error itself
        old, lost = None, True
    # What is compared with stands in the columns of labels, where reviews look for it.
    table = choice.table if info.labels is None else info.labels.labelled(choice.table, where=settings.samples)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **MADE_BY})
    if old is None:
        strange = [
            name
            for name in storage.list_names(out)
            if not name.startswith((".", "_")) and name not in (SAMPLES, PREDICTIONS)
        ]
        if strange and not lost:
            raise InputError(
                f"holds {strange[0]}, which is not part of an evaluation", path=out, remedy="Use a fresh output folder."
            )
        if not lost:
            outputs.require_replaceable(path, "the table of an evaluation", lambda head: _is_ours(path))
        storage.write_table(path, table)
    else:
        columns = input_columns(info.inputs, settings.features)  # if there are any, the job orders the table by image
        ordered = by_image(choice.table) if columns else choice.table
        read = tuple(dict.fromkeys((*columns, *output_columns(info))))
        now = {"rows": choice.table.num_rows, "digest": input_digest(with_optional(ordered, read), read)}
        require_same_settings({"samples": old["identity"]["input"]}, {"samples": now}, where=out, remedy=REMEDY)
        if _labels_differ(path, table):
            storage.write_table(path, table)  # corrected labels need no new predictions
    shared = {name: getattr(settings, name) for name in ModelJobSettings.model_fields if name not in ("samples", "out")}
    policy: dict[str, Any] = {}
    if info.labels is not None and info.labels.gives == "labels":
        policy = {"policy": "threshold"}
    if info.thresholds is not None:
        policy = {"policy": "class-thresholds"}
    job = LabelSettings.model_validate(
        {
            **shared,
            "samples": path,
            "out": folder,
            "model": settings.model,
            "selection": policy,
        }
    )
    return label(job, address=address, progress=progress)


def _is_ours(path: str) -> bool:
    """Returns whether an evaluation wrote the Parquet file at `path`, rather than the user."""
    try:
        with storage.open_input(path) as file:
            found = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return MADE_BY.items() <= found.items()


def _labels_differ(path: str, table: pa.Table) -> bool:
    """Returns whether the labels of the table at `path` differ from `table`, or cannot be read."""
    columns = ["sample_id", "split", "labels", "label_weights"]
    try:
        return not storage.read_table(path).select(columns).equals(table.select(columns))
    except (InputError, KeyError):
        return True


def _predictions(folder: str, outputs: Sequence[Output]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Reads the ids and, by output, the decoded values (n, width) float32 of all parts."""
    ids: list[str] = []
    blocks: dict[str, list[np.ndarray]] = {own.name: [np.zeros((0, own.width), np.float32)] for own in outputs}
    names = [name for own in outputs for name in own.columns(np.zeros((0, own.width), np.float32))]
    for _, table in read_parts(folder, ["sample_id", *names]):
        ids.extend(table.column("sample_id").to_pylist())
        for own in outputs:
            blocks[own.name].append(own.values(table))
    return ids, {name: np.concatenate(own) for name, own in blocks.items()}


def _priors(
    info: CheckpointInfo, training: pa.Table, truth: np.ndarray, soft: bool, notices: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns class rates of the training split, for labels and (if `soft`) for shares; adds notices on fallbacks."""
    training = training.filter(pc.is_valid(training.column("labels")))
    recorded = None if info.prior is None else np.asarray(info.prior, dtype=np.float64)
    if training.num_rows:
        # Preferred to the checkpoint's rates: a student's are those of pseudo-labels, which human labels do not follow,
        # so the baseline would be too easy to beat.
        prior = targets(training, info.vocabulary).mean(axis=0, dtype=np.float64)
        if recorded is None:
            notices.append("The checkpoint records no class rates: the prior is that of the table's train split.")
        elif np.abs(prior - recorded).max() > OTHER_RATES:
            notices.append(OTHER_PRIOR)
    elif recorded is not None:
        prior = recorded
    else:
        prior = truth.mean(axis=0, dtype=np.float64)
        notices.append(NO_PRIOR)
    if not soft:
        return prior, None
    if training.num_rows:
        return prior, targets(training, info.vocabulary, soft=True).mean(axis=0, dtype=np.float64)
    notices.append(NO_SHARES.format(metric="BCE"))
    return prior, None


def _table(
    rows: pa.Table, info: CheckpointInfo, predicted: Mapping[str, np.ndarray], labels: Labels | None
) -> pa.Table:
    """Builds the table of predictions: id, address, split, true and predicted labels, and each output's columns."""
    columns: dict[str, pa.Array] = {
        name: rows.column(name).combine_chunks() for name in ("sample_id", "image_uri", "split")
    }
    metadata: dict[bytes, bytes] = {}
    nullable = {"image_uri", "split", "labels"}
    for own in info.outputs:
        if own is info.labels:
            chosen = top_per_image(predicted[own.name], 1) if labels is None else labels.measured.chosen
            given = [info.vocabulary.decode(np.flatnonzero(row).tolist()) for row in chosen]
            columns["labels"] = own.labelled(rows, where=None).column("labels").combine_chunks()
            columns["predicted"] = pa.array(given, pa.list_(pa.string()))
        found = own.columns(predicted[own.name])
        columns |= found
        nullable |= set(found) if own.nullable else set()
        metadata = own.metadata() | metadata  # the vocabulary is that of the first labels
    schema = pa.schema(
        [pa.field(name, column.type, nullable=name in nullable) for name, column in columns.items()], metadata=metadata
    )
    return pa.table(list(columns.values()), names=list(columns)).cast(schema)


def _csv(of: type[ClassResult] | type[LabelResult], classes: Sequence[ClassResult | LabelResult]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(of)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in classes)
    return buffer.getvalue()


def _reads_more(output: Output) -> bool:
    """Returns whether targets are read from other columns than those of labels."""
    return output.gives in ("numbers", "vectors") or not output.reads_labels


def _choice_of_labels(info: CheckpointInfo) -> str:
    if info.labels is None and info.outputs[0].gives == "vectors":
        return "none: it gives vectors"
    if info.labels is not None and info.labels.gives == "one_label":
        return "none: the highest label of each sample"
    return "fitted on validation" if info.thresholds is not None else "0.5 for each label"


def _record(
    settings: EvaluateSettings,
    info: CheckpointInfo,
    choice: Choice,
    rows: pa.Table,
    job: JobSummary,
    labels: Labels | None,
    numbers: Sequence[Numbers],
    classes: Sequence[Classes],
    retrieval: Sequence[Retrieval],
    notices: list[str],
) -> dict[str, Any]:
    """Builds the record of evaluation.json. It holds no times, so that the same evaluation gives the same file."""
    return {
        "kind": "evaluation",
        "format": FORMAT,
        "caution": choice.caution,
        "notices": notices,
        "checkpoint": {
            "path": info.folder,
            "kind": info.kind.name,
            "fingerprint": info.fingerprint,
            "reads": list(info.reads),
            "inputs": [own.to_dict() for own in info.inputs],
            "trained_on": (info.training.get("data") or {}).get("fingerprint"),
            "thresholds": _choice_of_labels(info),
        },
        "vocabulary": None if info.labels is None else info.vocabulary.to_dict(),
        "samples": {
            "path": storage.absolute(settings.samples),
            "split": choice.split,
            "holdout_domain": list(settings.holdout_domain),
            "without_labels": choice.without_labels,
            **{name: job.counts[name] for name in ("in", "good", "quarantined", "by_reason")},
            "fingerprint": digest_of(
                [rows.column(name).to_pylist() for name in ("sample_id", "captions", "labels", "label_weights")]
                + [own.contents(own.read(rows, where=settings.samples)) for own in info.outputs if _reads_more(own)]
            ),
        },
        "settings": {
            **({} if settings.ablation is None else {"ablation": settings.ablation}),
            "soft": settings.soft,
            "bootstrap": settings.bootstrap,
            "bins": settings.bins,
        },
        "results": None if labels is None else labels.measured.to_dict(),
        "by": _by_of(settings.by, info, labels, classes, numbers),
        "classes": {own.output: {"vocabulary": own.subject, **own.measured.to_dict()} for own in classes},
        "numbers": {
            own.output: {
                "names": list(own.names),
                "scale": list(own.scale),
                **own.evaluation.to_dict(),
                "by_bin": {name: [asdict(row) for row in rows] for name, rows in own.by_bin.items()},
                "flat": own.flat,
            }
            for own in numbers
        },
        **({"retrieval": {own.output: own.to_dict() for own in retrieval}} if retrieval else {}),
        "versions": job.record["versions"],
    }


def _by_of(
    column: str | None,
    info: CheckpointInfo,
    labels: Labels | None,
    classes: Sequence[Classes],
    numbers: Sequence[Numbers],
) -> dict[str, Any] | None:
    """Returns the column, and the results of each output by its value; None without a column."""
    if column is None:
        return None
    found: dict[str, Mapping[str, Evaluation]] = {}
    if labels is not None and info.labels is not None:
        found[info.labels.name] = labels.by
    found |= {own.output: own.by for own in classes} | {own.output: own.by for own in numbers}
    outputs = {name: {value: own.to_dict() for value, own in by.items()} for name, by in found.items()}
    return {"column": column, "outputs": outputs}


def _by_csv(by: Mapping[str, Any]) -> str:
    """Returns a row for each output, value of the column, and metric, from the record."""
    heads = ("samples", "value", "low", "high", "prior", "constant")
    rows = [
        (output, by["column"], value, name, *(metric[head] for head in heads))
        for output, values in by["outputs"].items()
        for value, own in values.items()
        for name, metric in own["metrics"].items()
    ]
    return csv_text(["output", "column", "column_value", "metric", *heads], rows)
