"""`raymotion attack pixels`: attacks pictures in a batch job, and measures what misleads the model.

The attacks are a batch job in OUT/attacks, which runs on a cluster, quarantines failures, and resumes after an
interruption. The figures take seconds and are made again by every run of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from raymotion import records, storage
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import (
    FEWEST_FOR_RAY,
    JobSettings,
    JobSpec,
    one_or_several,
    resolve_precision,
    with_its_access,
)
from raymotion.config import Metavar, digest_of
from raymotion.data.samples import read_samples, write_samples
from raymotion.errors import InputError, SettingsMismatch
from raymotion.evaluation.evaluate import by_record, choose_samples
from raymotion.folders.lock import one_writer_of
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.outputs.base import array_digest
from raymotion.pipeline.embed import DecodeOnce
from raymotion.pipeline.plan import Options, make_plan
from raymotion.pipeline.stages import Stage
from raymotion.robustness.goals import Aim, Objective, make_objective
from raymotion.robustness.pixel_figures import Figures, figures_csv, measure
from raymotion.robustness.pixel_stage import ROW_FORMAT, AttackPixels, AttackPlan, AttackSink
from raymotion.robustness.prediction import PictureModel
from raymotion.robustness.searches import PGD_LENGTH, PGD_STARTS, PGD_STEPS, STRATEGIES

ATTACKS, SAMPLES, PICTURES = "attacks", "samples.parquet", "pictures"
MADE_BY = {b"made_by": b"raymotion attack pixels"}
FORMAT = 1
# SciPy's rand1bin needs four others for each candidate.
FEWEST_CANDIDATES = 5
# An attack of a picture takes seconds, so a lost shard should be few.
SHARD_ROWS, MOST_SHARDS = 2, 1000
# Pictures sent to a model, by which this process is done as soon as Ray has started.
FEWEST_QUERIES_FOR_RAY = 20_000
# Most changed pictures of a forward pass, on a CPU and on a GPU; a search sends one generation at a time.
BATCH = (32, 256)


class PixelAttackSettings(JobSettings):
    """Settings of `raymotion attack pixels`."""

    model: Annotated[str, Metavar("MODEL")] = Field(description="checkpoint: a folder or an address")
    split: Literal["train", "val", "test", "all"] | None = Field(
        None, description="samples to attack  [default: test where the table names splits, else all]"
    )
    images: int | None = Field(
        100,
        ge=0,
        description="how many of them, drawn at random; those that the model has wrong are among them. 0: all",
    )
    output: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="which output of the model, if it has several  [default: the first]"
    )
    aim: Aim = Field(default_factory=Aim)
    pixels: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        (1, 3, 5), description="how many pixels may change (repeatable)", min_length=1
    )
    queries: int = Field(
        2000, ge=FEWEST_CANDIDATES, description="most pictures sent to the model, for each picture, number of pixels "
        "and method",
    )  # fmt: skip
    population: int = Field(
        20,
        ge=FEWEST_CANDIDATES,
        description="candidates of a generation of the differential evolution, sent as one batch: a GPU affords more",
    )
    strategy: Literal["best1bin", "rand1bin"] = Field(
        "best1bin",
        description="SciPy's strategy of the differential evolution; rand1bin is that of Su et al., which needs more "
        "queries",
    )
    gradients: bool = Field(True, description="leave out the reference that knows the network's gradients")
    seed: int = Field(0, ge=0, description="seed of the drawn samples, of the searches and of the resamples")
    bootstrap: int = Field(1000, ge=0, description="resamples of the 95 % intervals; 0: none")
    examples: int = Field(24, ge=0, le=500, description="misled pictures on the page")
    weights: tuple[Annotated[str, Metavar("[NAME=]FILE")], ...] = Field(
        (),
        description="weights file of the region extractor or the backbones, if the model was trained with one; "
        "NAME=FILE for one of several backbones (repeatable)",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="most changed pictures of a forward pass, of the --population of a generation  [default: 256 on a "
        "GPU, else 32]",
    )
    shard_rows: int | None = Field(
        None, ge=1, description=f"rows of a shard, the unit of commit  [default: {SHARD_ROWS}]"
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="actors; 0: this process, without Ray  [default: as many as fit, or 0 for fewer than "
        f"{FEWEST_QUERIES_FOR_RAY:,} pictures sent in all, without --address]",
    )

    _several_weights = field_validator("weights", mode="before")(one_or_several)

    @field_validator("images", mode="after")
    @classmethod
    def _all_of_them(cls, value: int | None) -> int | None:
        return value or None

    @field_validator("pixels", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    def runs_here(self, rows: int, address: str | None) -> bool:
        """See `JobSettings`; counts the pictures sent to the model instead of the samples."""
        sent = 2 * rows * len(self.pixels) * self.queries
        return super().runs_here(0 if sent < FEWEST_QUERIES_FOR_RAY else FEWEST_FOR_RAY, address)


@dataclass(frozen=True)
class AttackSummary:
    """The result of an attack; `record` is its attack.json."""

    out: str
    record: Mapping[str, Any]
    figures: Figures
    job: JobSummary


# Arguments: the output folder, the record of attack.json, the settings.
PageWriter = Callable[[str, Mapping[str, Any], PixelAttackSettings], None]


@with_its_access
@one_writer_of("settings.out")
def attack_pixels(
    settings: PixelAttackSettings,
    *,
    address: str | None = None,
    progress: ProgressKind = "auto",
    write_page: PageWriter | None = None,
) -> AttackSummary:
    """Attacks a model and writes the results; a repeated call resumes the attacks and measures again.

    Writes attacks/ (Parquet, one row a picture, number of pixels and method), pictures/ (the misleading PNG files),
    attack.csv, the page, and at the end attack.json.

    Args:
        write_page: `report.attack_page.write`; None: no page.

    Raises:
        InputError: the model reads no pictures, or the attack does not fit its output; no sample has a target.
        SettingsMismatch: the folder holds an attack with other settings, on other samples or another model.
        RunFailed: more rows failed than `max_failed` allows; the same command resumes.
    """
    out = storage.absolute(settings.out)
    info = read_checkpoint_info(settings.model)
    objective = make_objective(info, settings.aim, settings.output)
    table, split, caution = _choose(settings, info, objective)
    job = _run(settings, info, objective, table, out, address, progress)
    figures = measure(
        storage.join(out, ATTACKS), table, objective, settings.pixels, resamples=settings.bootstrap, seed=settings.seed
    )
    _write_pictures(out)
    record = _record(settings, info, objective, split, caution, job, figures)
    storage.write_text(storage.join(out, "attack.csv"), figures_csv(figures))
    if write_page is not None:
        write_page(out, record, settings)
    records.write_record(storage.join(out, "attack.json"), record)  # written last: marks a complete attack
    return AttackSummary(out, record, figures, job)


def _choose(
    settings: PixelAttackSettings, info: CheckpointInfo, objective: Objective
) -> tuple[pa.Table, str, str | None]:
    """Returns the samples to attack, their split, and why the figures may flatter the model, or None."""
    choice = choose_samples(read_samples(settings.samples), objective.output, settings.split, where=settings.samples)
    table = choice.table.filter(pc.is_valid(choice.table.column("image_uri")))
    if not table.num_rows:
        raise InputError(
            f"has no sample of the split {choice.split} with a picture", path=settings.samples,
            remedy="Prepare it with its pictures, or choose another --split.",
        )  # fmt: skip
    if settings.images is not None and settings.images < table.num_rows:
        rng = np.random.default_rng([settings.seed, 0])
        table = table.take(np.sort(rng.permutation(table.num_rows)[: settings.images]))
    choice, _ = by_record(replace(choice, table=table), info)
    return table, choice.split, choice.caution


def _run(
    settings: PixelAttackSettings,
    info: CheckpointInfo,
    objective: Objective,
    table: pa.Table,
    out: str,
    address: str | None,
    progress: ProgressKind,
) -> JobSummary:
    """Writes the chosen samples to their own table and runs the job on it."""
    path = storage.join(out, SAMPLES)
    plan = make_plan(info, Options(None, settings.weights, None, settings.damaged), samples=settings.samples)
    if plan.images == "none":
        raise InputError("reads no pictures: there are no pixels to change", path=info.folder)
    PictureModel(plan.make_stages("float32"), objective.output.name)  # refuses a service
    _keep(path, table, out)
    targets = objective.output.read(table, where=settings.samples)
    truths = objective.truths(targets)
    captions = table.column("captions").to_pylist() if objective.needs_gallery else []
    gallery = tuple(tuple(own) for own in captions)
    of_attack = {
        "output": objective.output.name,
        "aim": settings.aim.model_dump(mode="json"),
        **{name: getattr(settings, name) for name in ("queries", "population", "strategy", "gradients", "seed")},
        "pixels": list(settings.pixels),
    }

    def stages(device: str) -> tuple[Stage, ...]:
        batch_size = settings.batch_size or BATCH[device == "cuda"]
        attack = AttackPlan(
            objective.output.name, settings.aim,
            dict(zip(table.column("sample_id").to_pylist(), truths, strict=True)), gallery, settings.pixels,
            settings.queries, settings.population, settings.strategy, batch_size, settings.gradients, settings.seed,
        )  # fmt: skip
        inner = plan.make_stages(resolve_precision(settings, device))
        # The full picture, whatever size the model resizes it to: its pixels are to be changed.
        return DecodeOnce(settings.damaged), AttackPixels(inner, attack)

    spec = JobSpec(
        kind="pixel-attack",
        settings=settings.model_copy(
            update={
                "samples": path,
                "out": storage.join(out, ATTACKS),
                # Thousands of small parts would cost more to read than they save in repeated work.
                "shard_rows": settings.shard_rows or max(SHARD_ROWS, table.num_rows // MOST_SHARDS),
            }
        ),
        identity={
            "model": {"fingerprint": info.fingerprint},
            "attack": {
                "row_format": ROW_FORMAT,
                **of_attack,
                "truths": array_digest(np.nan_to_num(truths, nan=-1e9)),
                **({"gallery": digest_of(gallery)} if gallery else {}),
            },
            **plan.identity,
        },
        make_stages=stages,
        sink=AttackSink(),
        model={**info.to_dict(), **plan.described},
        notices=plan.notices,
        images="required",
        columns=tuple(dict.fromkeys((*plan.columns, "group_id"))),
        keep_images_together=plan.keep_images_together,
        default_batch=BATCH,
        gpu=plan.gpu,
    )
    return run_job(spec, address=address, progress=progress)


def _keep(path: str, table: pa.Table, out: str) -> None:
    """Writes the chosen samples, or checks that they are those of the folder.

    Raises:
        SettingsMismatch: the folder holds an attack on other samples.
        InputError: the folder holds something else.
    """
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **MADE_BY})
    if storage.exists(path):
        there = read_samples(path)
        if not MADE_BY.items() <= (there.schema.metadata or {}).items():
            raise InputError("was not written by `raymotion attack pixels`", path=path, remedy="Name another --out.")
        if not there.equals(table):
            raise SettingsMismatch(
                "is of an attack on other samples, or on samples that have changed since", path=out,
                remedy="Use the same --samples, --split, --images and --seed to go on, or a fresh output folder.",
            )  # fmt: skip
        return
    strange = [name for name in storage.list_entries(out) if not name.startswith(("_", "."))]
    if strange:
        raise InputError(
            f"holds {strange[0]}, which is not part of an attack", path=out, remedy="Use a fresh output folder."
        )
    write_samples(path, table)


def picture_name(sample_id: str, pixels: int, method: str) -> str:
    """Returns the name of the PNG file of a misleading picture."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in sample_id)[:80]
    return f"{plain}-{digest_of(sample_id)[:8]}-{method}-{pixels}.png"


def _write_pictures(out: str) -> None:
    """Writes the PNG files of all misleading pictures, from the committed parts."""
    folder = storage.join(out, PICTURES)
    there = set(storage.list_names(folder))
    for _, part in read_parts(storage.join(out, ATTACKS), ["sample_id", "pixels", "method", "png"]):
        for row in part.filter(pc.is_valid(part.column("png"))).to_pylist():
            name = picture_name(row["sample_id"], row["pixels"], row["method"])
            if name not in there:
                storage.write_bytes(storage.join(folder, name), row["png"], durable=False)


def _record(
    settings: PixelAttackSettings,
    info: CheckpointInfo,
    objective: Objective,
    split: str,
    caution: str | None,
    job: JobSummary,
    figures: Figures,
) -> dict[str, Any]:
    """Builds the record of attack.json. It holds no times, so that the same attack gives the same file."""
    mutation, recombination, _ = STRATEGIES[settings.strategy]
    return {
        "kind": "pixel-attack",
        "format": FORMAT,
        "caution": caution,
        "notices": [str(notice) for notice in job.record["notices"]],
        "checkpoint": {"path": info.folder, "kind": info.kind.name, "fingerprint": info.fingerprint},
        "objective": objective.describe(),
        "samples": {
            "path": storage.absolute(settings.samples), "split": split,
            **{name: job.counts[name] for name in ("in", "good", "quarantined", "by_reason")},
        },
        "settings": {
            **{name: getattr(settings, name) for name in ("images", "queries", "population", "seed", "bootstrap")},
            "pixels": list(settings.pixels),
        },
        "search": {
            "evolution": f"SciPy's {settings.strategy}, mutation {mutation}, recombination {recombination:g}",
            "gradients": f"{PGD_STEPS} steps of {PGD_LENGTH:g} levels from the original colours and from {PGD_STARTS} "
            "random ones, on the pixels of the largest gradient",
        },
        **figures.to_dict(),
        "versions": {**job.record["versions"], "scipy": _scipy_version()},
    }  # fmt: skip


def _scipy_version() -> str:
    from importlib.metadata import version

    return version("scipy")
