"""Calibration of a checkpoint on labelled samples of another domain: temperatures, for all rows and by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raymotion import storage
from raymotion.config import Folder, Metavar, PathText, Settings
from raymotion.data.samples import read_samples, targets, vocabulary_of
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.learning.bootstrap import interval, ratio, resampled, sampling_units
from raymotion.learning.metrics.multilabel import evaluate, row_bce
from raymotion.learning.temperature import HIGHEST, LOWEST, fit_temperature, scale
from raymotion.models.checkpoint import CheckpointInfo, is_checkpoint, sample_mark, save_checkpoint
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.temperatures import Temperatures
from raymotion.pipeline.predictor import load

# Rows (of as many images) that a temperature is fitted to, at least.
FEWEST = 50
FOLDS = 5
BOOTSTRAP = 1000
ALL = "all"


class CalibrateSettings(Settings):
    """Settings of `raymotion calibrate`."""

    model: Annotated[str, Metavar("MODEL")] = Field(description="checkpoint: a folder or an address")
    samples: Annotated[PathText, Metavar("SAMPLES")] = Field(description="sample table with people's labels")
    out: Folder = Field(description="folder or address of the calibrated checkpoint")
    by: Literal["source"] | None = Field(
        None,
        description="column whose values get a temperature each; `split` is none, since rows of test are not used, and "
        "rows of another collection name no split  [default: one temperature for all rows]",
    )
    weights: tuple[Annotated[str, Metavar("[NAME=]FILE")], ...] = Field(
        (), description="weights file of the region extractor or the backbones, if the model was trained with one"
    )
    device: Annotated[str, Metavar("NAME")] = Field("cpu", description="cpu, cuda, cuda:1 ...")
    seed: int = Field(0, description="seed of the folds and the resamples")


@dataclass(frozen=True)
class DomainCalibration:
    """The calibration of the rows of one domain; binary cross-entropies are means over rows and labels, in nats.

    Attributes:
        domain: value of the column, or `all`.
        rows: number of rows.
        temperature: fitted to all of these rows.
        before: of the model as it was.
        global_after: with one temperature for all domains, fitted to other rows (cross-validated).
        after: with the temperature of the domain, fitted to other rows.
        gain_low, gain_high: 95 % bootstrap interval over images of `before - after`.
    """

    domain: str
    rows: int
    temperature: float
    before: float
    global_after: float
    after: float
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class Calibrated:
    """A calibrated checkpoint, with its results by domain (`all` is the first) and what to keep in mind."""

    info: CheckpointInfo
    domains: tuple[DomainCalibration, ...]
    notes: tuple[str, ...]


def calibrate_checkpoint(settings: CalibrateSettings) -> Calibrated:
    """Fits temperatures to a model's predictions of labelled rows, and writes a checkpoint that uses them.

    Rows of the split test are left out. Weights and inputs are those of the model; earlier temperatures are replaced.

    Raises:
        InputError: the model predicts no labels, the table has others or none, or a domain has fewer than `FEWEST`
            rows.
    """
    return _calibrate(settings)


@one_writer_of("settings.out", beside=True)
def _calibrate(settings: CalibrateSettings) -> Calibrated:
    target = storage.absolute(settings.out)
    if is_checkpoint(target) or storage.list_entries(target):
        raise InputError("is not empty", path=target, remedy="Name another folder, or remove it.")
    table = read_samples(settings.samples)
    predictor = load(settings.model, device=settings.device, weights=settings.weights)
    info, output = predictor.info, predictor.info.labels
    if output is None or output.gives != "labels":
        what = "one label a sample" if info.one_label else "no labels"
        raise InputError(
            f"predicts {what}: temperatures are fitted to labels that apply independently", path=info.folder
        )
    output = cast(MultiLabel, output)
    vocabulary = vocabulary_of(table, where=settings.samples)
    if vocabulary is None:
        raise InputError("has no labels to fit to", path=settings.samples, remedy="Give samples that people labelled.")
    output.vocabulary.require_same(vocabulary, here=settings.model, there=settings.samples)
    is_test = pc.fill_null(pc.equal(table.column("split"), "test"), False)
    table = table.filter(pc.and_(pc.is_valid(table.column("labels")), pc.invert(is_test)))
    _require_enough(table, settings)

    former, output.temperatures = output.temperatures, None  # predictions of the network itself
    frame = predictor.predict(table)
    good = frame["failure"].isna().to_numpy()
    probabilities = frame[frame.attrs["labels"][: output.width]].to_numpy(np.float64)[good]
    table = table.filter(pa.array(good))
    notes = [f"{int((~good).sum()):,} rows could not be predicted, and are left out."] if not good.all() else []
    _require_enough(table, settings)
    marks = {sample_mark(name) for name in table.column("sample_id").to_pylist()}
    known = set((info.training.get("data") or {}).get("seen") or ())
    if seen := len(marks & known):
        notes.append(
            f"{seen:,} of these {table.num_rows:,} rows were trained on, or chosen by: the model is surer of these "
            "than of others, and the temperature may be too low. Leave them out of the table."
        )
    truth = targets(table, output.vocabulary).astype(np.float64)
    groups = table.column("group_id").to_pylist()
    domains = table.column(settings.by).to_pylist() if settings.by is not None else [None] * table.num_rows
    temperatures = fit_temperatures(truth, probabilities, domains, settings.by)
    results, held_out = _cross_validated(truth, probabilities, domains, groups, temperatures, settings.seed)
    notes += [
        f"The temperature of {own.domain} ran to the end of its range ({own.temperature:.3g}): the probabilities do "
        "not fit these labels, and no temperature mends that."
        for own in results
        if not LOWEST * 1.01 < own.temperature < HIGHEST / 1.01
    ]
    output.temperatures = temperatures
    training = _training(info, output, former, settings, results, marks | known)
    prior = truth.mean(axis=0) if info.prior is None else np.array(info.prior)
    training["outputs"][output.name]["validation"] = evaluate(
        truth, held_out, prior=prior, labels=vocabulary.labels, seed=settings.seed, groups=groups
    ).to_dict()
    saved = save_checkpoint(
        target, info.kind, predictor.model.network, info.inputs, info.outputs, training=training,
        domain=info.domain_bytes(),
    )  # fmt: skip
    return Calibrated(saved, tuple(results), tuple(notes))


def _require_enough(table: pa.Table, settings: CalibrateSettings) -> None:
    """Raises an `InputError` for a domain with too few labelled rows or images."""
    if not table.num_rows:
        raise InputError("has no labelled row outside of the split test", path=settings.samples)
    names = table.column(settings.by).to_pylist() if settings.by is not None else [ALL] * table.num_rows
    images: dict[str, set[str]] = {}
    for name, group in zip(names, table.column("group_id").to_pylist(), strict=True):
        if name is not None:
            images.setdefault(name, set()).add(group)
    name, own = min(images.items(), key=lambda item: len(item[1]), default=(f"no {settings.by}", set[str]()))
    if len(own) < FEWEST:
        of = f"of {settings.by} {name!r} " if settings.by is not None else ""
        raise InputError(
            f"has {len(own)} labelled images {of}that a temperature could be fitted to, fewer than {FEWEST}",
            path=settings.samples,
            remedy="Label more of them"
            + (f", or leave them out: rows of any other {settings.by} get the temperature of all." if of else "."),
        )


def fit_temperatures(
    truth: np.ndarray, probabilities: np.ndarray, domains: Sequence[str | None], column: str | None
) -> Temperatures:
    """Fits the temperature of all rows, and one for each domain; rows without one (None) count for all only.

    Args:
        truth, probabilities: (n, L).
        domains: n names.
        column: of the sample table, that the names come from.
    """
    names = np.array([name or "" for name in domains], dtype=object)
    there = sorted({name for name in domains if name is not None})
    by = {name: fit_temperature(truth[names == name], probabilities[names == name]) for name in there}
    return Temperatures(fit_temperature(truth, probabilities), column, by)


def _cross_validated(
    truth: np.ndarray,
    probabilities: np.ndarray,
    domains: Sequence[str | None],
    groups: Sequence[str],
    fitted: Temperatures,
    seed: int,
) -> tuple[list[DomainCalibration], np.ndarray]:
    """Returns the results by domain, and probabilities (n, L) of temperatures that were fitted to other images."""
    units = sampling_units(groups, len(groups))
    fold_of = np.random.default_rng(seed).permutation(int(units.max()) + 1)[units] % FOLDS
    one, own = np.empty_like(probabilities), np.empty_like(probabilities)
    for fold in range(FOLDS):
        rest, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        found = fit_temperatures(truth[rest], probabilities[rest], [domains[i] for i in rest.tolist()], fitted.column)
        one[held] = scale(probabilities[held], found.all)
        own[held] = found.apply(probabilities[held], [domains[i] for i in held.tolist()])
    before, one_after, after = (row_bce(truth, p) for p in (probabilities, one, own))
    results = []
    for name, temperature in ((None, fitted.all), *sorted(fitted.by.items())):
        rows = np.array([name is None or own_name == name for own_name in domains])
        gain, place = (before - after)[rows], sampling_units(np.array(groups)[rows], int(rows.sum()))
        _, drawn = resampled(
            lambda weights, gain=gain: ratio(weights @ gain[:, None], weights.sum(axis=1, keepdims=True)),  # type: ignore[misc]
            len(gain), resamples=BOOTSTRAP, seed=seed, units=place,
        )  # fmt: skip
        low, high = interval(drawn[:, 0]) or (None, None)
        results.append(
            DomainCalibration(
                domain=name or ALL,
                rows=int(rows.sum()),
                temperature=temperature,
                before=float(before[rows].mean()),
                global_after=float(one_after[rows].mean()),
                after=float(after[rows].mean()),
                gain_low=low,
                gain_high=high,
            )
        )
    return results, own


def _training(
    info: CheckpointInfo,
    output: MultiLabel,
    former: Temperatures | None,
    settings: CalibrateSettings,
    results: Sequence[DomainCalibration],
    seen: set[str],
) -> dict[str, Any]:
    """Returns training.json of the calibrated checkpoint: without figures that are no longer true."""
    facts = {name: dict(own) for name, own in (info.training.get("outputs") or {}).items()}
    own = facts.setdefault(output.name, {})
    for name in ("validation", "test", "interpolated_map"):
        own.pop(name, None)
    if own.get("thresholds") is not None:
        # The same decisions where the temperature of all applies. Above 1: never reached, and it stays so.
        limits = np.array(own["thresholds"], dtype=np.float64)
        plain = np.minimum(limits, 1.0)[None]
        raw = plain if former is None else scale(plain, 1.0 / former.all)
        assert output.temperatures is not None
        moved = scale(raw, output.temperatures.all)[0]
        own["thresholds"] = [float(x) for x in np.where(limits > 1.0, limits, moved)]
    data: Mapping[str, Any] = info.training.get("data") or {}
    return {
        **info.training,
        "outputs": facts,
        "data": {**data, "seen": sorted(seen)},
        "calibration": {
            "from": info.fingerprint,
            "samples": storage.absolute(settings.samples),
            "by": settings.by,
            "seed": settings.seed,
            "folds": FOLDS,
            "domains": [asdict(result) for result in results],
        },
    }
