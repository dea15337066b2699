"""The feature-corruption test: figures of a model whose cached features are partly replaced by noise at test time.

Each number of a feature is replaced with a given probability by a draw from N(0, 1): of the standardised feature, so
that noise has the mean and spread that this number has over the scored samples, or of the raw one, as the public EMOTIC
code did. Raw features of most backbones are far from N(0, 1) (those behind a ReLU are never negative), so raw noise
says how a model takes numbers that no picture gives, and its size differs from backbone to backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.learning.bootstrap import finite, interval, resampled, sampling_units
from raymotion.learning.paired import Weighed, paired_gain
from raymotion.models.checkpoint import CheckpointInfo, Model, load_model
from raymotion.models.inputs.streams import StreamEvidence, StreamInput
from raymotion.models.outputs.base import Output
from raymotion.pipeline.embed import LoadEmbeddings
from raymotion.pipeline.plan import keys_in
from raymotion.pipeline.stages import Item

Space = Literal["standardised", "raw"]
# The metric of each output that is shown, by what it gives; of others, the one that selects an epoch.
SHOWN = {"labels": "macro_ap", "numbers": "mae"}
NONE = "none"


@dataclass(frozen=True)
class Figure:
    """One metric of one output under a condition.

    Attributes:
        low, high: 95 % bootstrap interval over groups; None where it is not known.
        constant: the metric of the best constant prediction.
        change: value minus that of clean features, with its paired interval; None for clean features.
    """

    output: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    constant: float | None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None


@dataclass(frozen=True)
class Condition:
    """What was replaced, and the figures. `shares` are by stream, empty for clean features."""

    shares: Mapping[str, float]
    figures: Sequence[Figure]

    @property
    def name(self) -> str:
        """For tables: `body 50 %`."""
        return name_of(self.shares)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {"name": self.name, "shares": dict(self.shares), "figures": [asdict(own) for own in self.figures]}


def name_of(shares: Mapping[str, float]) -> str:
    """Returns the name of a condition."""
    return " and ".join(f"{stream} {100 * share:g} %" for stream, share in shares.items()) or NONE


def parse_corruption(values: Sequence[str], streams: Sequence[str]) -> dict[str, float]:
    """Returns the share of each stream to replace, from `SHARE` for all and `STREAM=SHARE`; the last one counts.

    Raises:
        InputError: a share is not above 0 and at most 1, or the model reads no such stream.
    """
    shares: dict[str, float] = {}
    for value in values:
        stream, equals, text = value.rpartition("=")
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise InputError(f"--corrupt {value} is not a share above 0, up to 1", remedy="Write 0.5, or body=0.5.")
        if equals and stream not in streams:
            raise InputError(f"the model reads no {stream}", remedy=f"It reads {' and '.join(streams)}.")
        shares |= {stream: share} if equals else dict.fromkeys(streams, share)
    return {name: shares[name] for name in STREAMS if name in shares}


def conditions_of(shares: Mapping[str, float]) -> list[dict[str, float]]:
    """Returns what is replaced under each condition: nothing, each stream alone, and all of them."""
    alone = [{name: share} for name, share in shares.items()]
    return [{}, *alone, *([dict(shares)] if len(shares) > 1 else [])]


def corrupted(
    values: np.ndarray, ids: Sequence[str], share: float, *, stream: str, seed: int, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Returns features with a random share of their numbers replaced, float32.

    What is drawn for a sample depends on its id, the stream and the seed alone, and a larger share replaces what a
    smaller one does and more.

    Args:
        values: (n, ..., D). ids: of the n samples.
        mean, std: (D,) of the noise.
    """
    found = values.astype(np.float32)
    for row, sample_id in enumerate(ids):
        key = blake2b(f"{seed}\0{stream}\0{sample_id}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(key, "little"))
        chosen = rng.random(found.shape[1:]) < share
        noise = rng.standard_normal(found.shape[1:], dtype=np.float32) * std + mean
        found[row] = np.where(chosen, noise, found[row])
    return found


def require_streams(info: CheckpointInfo, features: str | None, ablation: str | None) -> StreamInput:
    """Returns the input whose features are corrupted.

    Raises:
        InputError: the model reads something else, or no features are given.
    """
    own = info.inputs[0]
    if len(info.inputs) != 1 or not isinstance(own, StreamInput):
        raise InputError(
            f"a {info.kind.name} reads more than cached features, and --corrupt is for these",
            path=info.folder,
            remedy="Leave --corrupt out.",
        )
    if features is None:
        raise InputError(
            "--corrupt replaces cached features, and none are given",
            remedy="Give --features, a folder of `raymotion features embeddings` of these samples.",
        )
    return own if ablation is None else own.without(ablation, where=info.folder)


def measure_corruption(
    info: CheckpointInfo,
    rows: pa.Table,
    *,
    own: StreamInput,
    features: str,
    shares: Mapping[str, float],
    space: Space,
    groups: Sequence[str] | None,
    bootstrap: int,
    seed: int,
    where: object = None,
) -> list[Condition]:
    """Predicts the rows with clean features, with each stream of `shares` corrupted alone, and with all of them.

    Args:
        rows: of the sample table; all have features in the folder `features`.
        groups: group of each row; the intervals draw whole ones.
        bootstrap: resamples of the intervals.

    Raises:
        InputError: a sample has no features.
    """
    model = load_model(info.folder, expected_fingerprint=info.fingerprint)
    evidence = _evidence(own, features, rows.column("sample_id").to_pylist())
    ids = rows.column("sample_id").to_pylist()
    statistics = {name: _statistics(evidence, name, space) for name in shares}
    known = {output.name: np.flatnonzero(output.read(rows, where=where).known) for output in info.outputs}
    clean: dict[str, tuple[Weighed, int]] = {}
    found = []
    for condition in conditions_of(shares):
        values = dict(evidence.values)
        for stream, share in condition.items():
            mean, std = statistics[stream]
            values[stream] = corrupted(values[stream], ids, share, stream=stream, seed=seed, mean=mean, std=std)
        changed = StreamEvidence(evidence.argument, evidence.order, values, evidence.there, evidence.n)
        predicted = _predict(model, changed, rows)
        figures = []
        for output in info.outputs:
            there = known[output.name]
            if not len(there):
                continue
            weighed, constant = _weighed(output, rows.take(there), predicted[output.name][there], groups, there, where)
            figures.append(_figure(output, weighed, constant, clean.get(output.name), groups, there, bootstrap, seed))
            clean.setdefault(output.name, (weighed, len(there)))
        found.append(Condition(condition, figures))
    return found


def _evidence(own: StreamInput, features: str, ids: Sequence[str]) -> StreamEvidence:
    folder = storage.absolute(features)
    stage = LoadEmbeddings(folder, keys_in(folder, own.kept), own.kept)
    stage.setup(1, "cpu")
    items = [Item({"sample_id": sample_id}) for sample_id in ids]
    stage.process(items)
    for item in items:
        if item.failure is not None:
            raise InputError(f"{item.row['sample_id']}: {item.failure.message}", path=folder)
    return own.collect(items)


def _statistics(evidence: StreamEvidence, stream: str, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of the noise of each number of a feature, (D,) float32."""
    values = evidence.values[stream]
    dim = values.shape[-1]
    there = values[evidence.there[stream]].reshape(-1, dim).astype(np.float64)
    if space == "raw" or not len(there):
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    return there.mean(axis=0).astype(np.float32), there.std(axis=0).astype(np.float32)


def _predict(model: Model, evidence: StreamEvidence, rows: pa.Table) -> dict[str, np.ndarray]:
    own = model.inputs[0]
    predicted = model.predict({own.name: evidence})
    records = rows.to_pylist() if any(output.columns_read for output in model.outputs) else [{}] * rows.num_rows
    return {output.name: output.adjust(predicted[output.name], records) for output in model.outputs}


def _metric(output: Output) -> str:
    return SHOWN.get(output.gives, output.selects)


def _weighed(
    output: Output,
    rows: pa.Table,
    values: np.ndarray,
    groups: Sequence[str] | None,
    there: np.ndarray,
    where: object,
) -> tuple[Weighed, Weighed]:
    """Returns the metric of predictions, and that of the best constant one, as functions of the draws of groups."""
    targets, every = output.read(rows, where=where), np.arange(rows.num_rows)
    units = _units(groups, there)
    constant = np.broadcast_to(output.baseline(targets, every), values.shape)
    first, second = (output.weighed(_metric(output), targets, every, own, units) for own in (values, constant))
    return first, second


def _units(groups: Sequence[str] | None, there: np.ndarray) -> np.ndarray:
    return sampling_units(None if groups is None else [groups[row] for row in there.tolist()], len(there))


def _figure(
    output: Output,
    weighed: Weighed,
    constant: Weighed,
    clean: tuple[Weighed, int] | None,
    groups: Sequence[str] | None,
    there: np.ndarray,
    bootstrap: int,
    seed: int,
) -> Figure:
    count = int(_units(groups, there).max()) + 1
    point, drawn = resampled(lambda counts: weighed(counts)[:, None], count, resamples=bootstrap, seed=seed)
    # Resampling inflates mAP: the interval is moved to the value.
    around = float(point[0]) if _metric(output) == "macro_ap" else None
    low, high = interval(drawn[:, 0], around=around) or (None, None)
    basis = float(constant(np.ones((1, count)))[0])
    change: tuple[float | None, float | None, float | None] = (None, None, None)
    if clean is not None:
        gain = paired_gain(
            [weighed], [clean[0]], groups=count, numbers=len(there) * output.width, resamples=bootstrap, seed=seed
        )
        change = (gain.value, gain.low, gain.high)
    return Figure(output.name, _metric(output), finite(point[0]), low, high, finite(basis), *change)


def each_figure(record: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Yields condition and figure from `corruption` of an evaluation.json."""
    for condition in record["conditions"]:
        for own in condition["figures"]:
            yield condition["name"], Figure(**own)
