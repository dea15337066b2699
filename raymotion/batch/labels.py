"""The labelling job: reads a sample table, runs a model, and writes pseudo-labels as Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.choice import check_labels, choose_globally, with_choice
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.progress import ProgressKind
from raymotion.batch.rates import require_rates
from raymotion.batch.spec import JobSpec, ModelJobSettings, one_or_several, resolve_precision, with_its_access
from raymotion.config import Metavar, digest_of
from raymotion.data.captions import readable
from raymotion.data.parts import VERIFY, running_job, sample_name
from raymotion.data.provenance import MADE_FROM
from raymotion.errors import Damaged, InputError
from raymotion.learning.domain import DomainCheck, DomainSample, check_domain, unknown
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.checkpoint_files import DOMAIN
from raymotion.models.domain_sample import read_sample
from raymotion.models.ensemble import read_models
from raymotion.models.outputs.base import Output
from raymotion.pipeline.ask import spent, spent_notices
from raymotion.pipeline.plan import Options, Plan, known_domain, make_plan
from raymotion.pipeline.stages import Item, Stage, made_from

# Share of unknown words in the captions from which a notice is given.
MANY_UNKNOWN = 0.2
# Vectors of so many rows are enough to see that all are one direction; those of all may not fit into memory.
MOST_VECTORS = 20_000


class LabelSettings(ModelJobSettings):
    """Settings of `raymotion label`."""

    model: tuple[Annotated[str, Metavar("MODEL")], ...] = Field(
        description="checkpoint of the model: a folder or an address; given several times, the predictions of the "
        "models are averaged",
        min_length=1,
    )
    selection: SelectionPolicy = Field(default_factory=SelectionPolicy)

    _models = field_validator("model", mode="before")(one_or_several)


class LabelSink:
    """Encodes pseudo-labels as rows.

    Columns: sample_id, image_uri, image_bytes and image_digest (of the picture that was read, or that cached features
    were made from; null if none), captions (those that were read), unknown_words (share of the words in the captions
    that the model does not know; null if it read none). For a model with a vocabulary also probabilities (float32 (L),
    vocabulary order), labels (the chosen ones, vocabulary order) and selected (whether the policy selects the row);
    labels of a policy that needs the whole set stay empty until `choose_globally` runs. Finally the columns of other
    outputs, such as valence, on their scale.

    Args:
        outputs: outputs of the model.
        reads_text: whether the model was trained on captions.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        policy: SelectionPolicy,
        thresholds: Sequence[float] | None,
        reads_text: bool,
    ) -> None:
        self.outputs, self.policy, self.reads_text = tuple(outputs), policy, reads_text
        self.labels = next((own for own in outputs if own.vocabulary is not None), None)
        self.thresholds = None if thresholds is None else np.asarray(thresholds)

    def schema(self) -> pa.Schema:
        """Returns the schema of the parts."""
        fields = [
            pa.field("sample_id", pa.string(), nullable=False),
            *MADE_FROM,
            pa.field("captions", pa.list_(pa.string()), nullable=False),
            pa.field("unknown_words", pa.float32()),
        ]
        metadata: dict[bytes, bytes] = {}
        for own in self._ordered():
            empty = own.columns(np.zeros((0, own.width), np.float32))
            fields += [pa.field(name, column.type, nullable=own.nullable) for name, column in empty.items()]
            if own is self.labels:
                fields += [
                    pa.field("labels", pa.list_(pa.string()), nullable=False),
                    pa.field("selected", pa.bool_(), nullable=False),
                ]
            metadata = own.metadata() | metadata  # the vocabulary is that of the first labels
        return pa.schema(fields, metadata=metadata)

    def _ordered(self) -> list[Output]:
        return sorted(self.outputs, key=lambda own: own is not self.labels)

    def encode(self, items: Sequence[Item]) -> pa.Table:
        """Converts items to rows."""
        ids = [item.row["sample_id"] for item in items]
        captions = [
            item.output.get("captions", readable(item.row["captions"])) if self.reads_text else [] for item in items
        ]
        schema = self.schema()
        columns: dict[str, pa.Array] = {
            "sample_id": pa.array(ids, pa.string()),
            **dict(zip((own.name for own in MADE_FROM), made_from(items), strict=True)),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "unknown_words": pa.array([item.output.get("unknown_words") for item in items], pa.float32()),
        }
        matrix = np.zeros((len(items), 0), np.float32)
        for own in self.outputs:
            values = np.array([item.output[own.name] for item in items], np.float32).reshape(len(items), own.width)
            columns |= own.columns(values)
            if own is self.labels:
                matrix = values
        if self.labels is not None:
            columns |= {
                "labels": pa.nulls(len(items), pa.list_(pa.string())), "selected": pa.nulls(len(items), pa.bool_())
            }  # fmt: skip
        table = pa.table([columns[name] for name in schema.names], names=schema.names)
        if self.labels is None or self.labels.vocabulary is None:
            return table.cast(schema)
        if self.policy.is_global:
            mask, selected = np.zeros(matrix.shape, bool), np.zeros(len(items), bool)
        else:
            mask, selected = self.policy.choose(matrix, ids, self.thresholds)
        return with_choice(table, mask, selected, self.labels.vocabulary).cast(schema)


@with_its_access
def label(settings: LabelSettings, *, address: str | None = None, progress: ProgressKind = "auto") -> JobSummary:
    """Runs the labelling job; see `run_job` for resume and errors."""
    info = read_models(settings.model)
    if info.labels is None and settings.selection != SelectionPolicy():
        raise InputError(
            "is a model without a vocabulary: there are no labels to choose",
            path=info.folder,
            remedy="Leave the options of the choice out.",
        )
    if info.one_label:
        settings = settings.model_copy(update={"selection": settings.selection.for_one_label()})
    if settings.selection.policy == "class-thresholds" and info.thresholds is None:
        raise InputError(
            "holds no thresholds fitted on validation",
            path=info.folder,
            remedy="Choose another --policy."
            if info.members
            else "Train it with a validation split, or choose another --policy.",
        )
    if settings.selection.adapt_rates:
        require_rates(info.learned_rates, info.folder)
    options = Options(settings.features, settings.weights, settings.ablation, settings.damaged)
    plan = make_plan(info, options, samples=settings.samples)

    def stages(device: str) -> tuple[Stage, ...]:
        return plan.make_stages(resolve_precision(settings, device))

    spec = JobSpec(
        kind="labels",
        settings=settings,
        identity={**_identity(info, settings), **plan.identity},
        make_stages=stages,
        sink=LabelSink(info.outputs, settings.selection, info.thresholds, "captions" in info.reads),
        model={**info.to_dict(), **plan.described},
        vocabulary=None if info.labels is None else info.vocabulary,
        notices=plan.notices,
        finish=lambda folder: _finish(info, settings, folder, plan),
        images=plan.images,
        columns=plan.columns,
        keep_images_together=plan.keep_images_together,
        check=plan.check,
        gpu=plan.gpu,
        # A picture is decoded once for all its persons, so batches may be larger.
        default_batch=(16, 64) if plan.keep_images_together or "streams" in _names(info) else (2, 16),
    )
    return run_job(spec, address=address, progress=progress)


def _names(info: CheckpointInfo) -> set[str]:
    return {own.name for own in info.inputs}


def _identity(info: CheckpointInfo, settings: LabelSettings) -> dict[str, Any]:
    """Returns what determines the labels for any model."""
    return {
        "model": {
            "fingerprint": info.fingerprint,
            "vocabulary": None if info.labels is None else info.vocabulary.fingerprint,
        },
        "selection": None if info.labels is None else settings.selection.model_dump(mode="json"),
        "thresholds": digest_of(info.thresholds) if settings.selection.policy == "class-thresholds" else None,
    }


def _finish(info: CheckpointInfo, settings: LabelSettings, folder: str, plan: Plan) -> Mapping[str, Any]:
    """Returns additions to _job.json for the finished labels."""
    more: dict[str, Any] = {}
    told = list(plan.notices)
    for own in info.outputs:
        if own.gives in ("numbers", "vectors"):
            most = MOST_VECTORS if own.gives == "vectors" else None
            flat = own.spread_notice(_values(folder, own, most), info.facts(own.name))
            told += [flat] if flat else []
    if info.labels is not None:
        if settings.selection.is_global:
            more["choice"] = choose_globally(
                folder, folder, settings.selection, info.vocabulary, info.thresholds,
                model=info.to_dict(), training=info.learned_rates,
            )  # fmt: skip
        evaluation = info.facts(info.labels.name).get("validation")
        more["collapse"] = check_labels(folder, info.vocabulary, info.prior, evaluation, told, info.one_label)
    tally: Counter[str] = Counter()
    commits = ledger.read_commits(folder, running_job(folder)["digest"])
    for commit in commits.values():
        tally.update(commit.tally)
    service = plan.described.get("service") or {}
    if usage := spent(tally, service):
        more["usage"] = usage
        told += spent_notices(usage, service.get("response_format"))
    if not service:
        more["domain"] = _check_domain(info, folder, commits).to_dict()
    words = _words(folder, told) if "captions" in info.reads else {}
    return {**more, "notices": told, "with": {part: tally[part] for part in info.reads}, **words}


def _check_domain(info: CheckpointInfo, folder: str, commits: Mapping[int, ledger.Commit]) -> DomainCheck:
    """Compares what was labelled with what the model learned from; of several models, the first that knows it."""
    own = known_domain(info)
    if own is None:
        return DomainCheck(unknown(f"{info.folder} holds no sample of its training data"))
    place = storage.join(own.folder, DOMAIN)
    try:
        training = read_sample(place, own.domain or "", remedy="Copy or pull the checkpoint again.")
    except Damaged as error:
        return DomainCheck(unknown(str(error).rstrip(".")))

    def read(commit: ledger.Commit) -> DomainSample:
        path = storage.join(folder, sample_name(ledger.shard_name(commit.shard)))
        return read_sample(path, commit.sample_marks[0].sha256, remedy=VERIFY)

    with ThreadPoolExecutor(16) as pool:  # object stores are slow, but serve many requests at once
        parts = list(pool.map(read, (commits[shard] for shard in sorted(commits) if commits[shard].sample)))
    if not parts:
        return DomainCheck(unknown("no row was labelled"))
    of = "the model" if not info.members else f"the model {own.folder}"
    return check_domain(training, DomainSample.joined(parts), carryover=own.training.get("carryover"), of=of)


def _values(folder: str, output: Output, most: int | None = None) -> np.ndarray:
    """Reads the values (n, width) from all parts, or from the first ones until there are `most` rows."""
    names = list(output.columns(np.zeros((0, output.width), np.float32)))
    blocks = [np.zeros((0, output.width), np.float32)]
    rows = 0
    for _, part in read_parts(folder, names):
        blocks.append(output.values(part))
        rows += part.num_rows
        if most is not None and rows >= most:
            break
    return np.concatenate(blocks)


def _words(folder: str, notices: Sequence[str]) -> dict[str, Any]:
    """Returns additions to _job.json on unknown words, and the notices, extended if they are many."""
    shares = np.concatenate(
        [part.column("unknown_words").drop_null().to_numpy() for _, part in read_parts(folder, ["unknown_words"])]
        or [np.zeros(0)]
    )
    if not len(shares):
        return {}
    mean, many = float(shares.mean()), int((shares > MANY_UNKNOWN).sum())
    told = list(notices)
    if mean > MANY_UNKNOWN:
        told.append(
            f"The model does not know {mean:.0%} of the words in the captions, and labels from the others: are the "
            "captions in the language that it was trained on?"
        )
    words = {"mean_share": round(mean, 4), "rows": len(shares), "rows_with_many": many, "many": MANY_UNKNOWN}
    return {"unknown_words": words, "notices": told}
