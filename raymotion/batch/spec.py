"""The settings shared by all batch jobs, and the specification of one job."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

import pyarrow as pa
from pydantic import Field, field_validator

from raymotion.batch.worker import Sink
from raymotion.config import Folder, Metavar, PathText, Settings
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError
from raymotion.pipeline.stages import Stage
from raymotion.stores import access
from raymotion.vocabulary import Vocabulary

ALWAYS_MAY_FAIL = 3
# Starting Ray takes about as long as this many pictures.
FEWEST_FOR_RAY = 200
REMEDY = "Use the same settings to go on, or a fresh output folder."


class JobSettings(Settings):
    """Settings shared by all batch jobs. Those under "placement" do not affect the output."""

    samples: Annotated[PathText, Metavar("SAMPLES")] = Field(description="sample table of `raymotion data prepare`")
    out: Folder = Field(description="folder or address to write to")
    batch_size: int | None = Field(None, ge=1, description="images of a forward pass  [default: 16 on a GPU, else 2]")
    shard_rows: int | None = Field(
        None, ge=1, description="rows of a shard, the unit of commit  [default: by size, 8-256]"
    )
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="precision of the networks  [default: bfloat16 on a GPU, else float32]"
    )
    damaged: DamagedPolicy = Field(
        "quarantine",
        description="a picture that decodes, but not to what was stored (bytes lost or overwritten): put its row in "
        "quarantine, or keep what the decoder makes of it, and count it",
    )
    # placement
    workers: int | None = Field(
        None,
        ge=0,
        description="actors; 0: this process, without Ray  [default: as many as fit, or 0 for fewer than "
        f"{FEWEST_FOR_RAY} rows without --address]",
    )
    cpus_per_worker: float | None = Field(
        None, gt=0, description="CPUs of an actor  [default: 1; with a GPU its share, up to 8]"
    )
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs of an actor  [default: 1 where there are any]")
    decode_threads: int | None = Field(
        None,
        ge=0,
        description="threads that decode ahead of the model; 0: decode and predict in turn  [default: a GPU worker's "
        "CPUs, else 0]",
    )
    verify: bool = Field(
        False,
        description="read all committed files and compare their digests; damaged shards are redone. Without it, sizes "
        "and footers are compared now, and digests once, before the job counts as complete",
    )
    autoscale: bool = Field(
        False, description="let the cluster start nodes for actors that wait, however many; needs --workers"
    )
    allow_http: bool | None = Field(
        None, description="read http:// and https:// addresses, within limits of time, bytes and redirects"
    )
    store_patience: Annotated[float, Metavar("SECONDS")] | None = Field(
        None, ge=0, le=1e6, description="how long requests are retried while an object store fails  [default: 120]"
    )
    max_failed: float = Field(
        0.05, ge=0, le=1, description="share of rows that may fail; at least 3 rows may, unless it is 0"
    )

    def runs_here(self, rows: int, address: str | None) -> bool:
        """Returns whether a job of `rows` runs in this process instead of on Ray.

        Raises:
            InputError: `workers` is 0, and a cluster or its resources are named.
        """
        of_cluster = {
            "--address": address, "--autoscale": self.autoscale or None, "--gpus-per-worker": self.gpus_per_worker,
        }  # fmt: skip
        named = [option for option, value in of_cluster.items() if value is not None]
        if self.workers == 0 and named:
            raise InputError(f"--workers 0 is this process, and {named[0]} is for Ray", remedy="Give one of them.")
        return self.workers == 0 or (self.workers is None and not named and rows < FEWEST_FOR_RAY)

    def rows_that_may_fail(self, rows: int) -> int:
        """How many of `rows` may fail.

        At least three may, so that one bad file does not stop a small run; none may if `max_failed` is 0.
        """
        return max(ALWAYS_MAY_FAIL, int(self.max_failed * rows)) if self.max_failed else 0


def one_or_several(value: Any) -> Any:
    """Returns a field's value as a tuple, of one text, several, or none."""
    return () if value is None else (os.fspath(value),) if isinstance(value, str | os.PathLike) else value


class ModelJobSettings(JobSettings):
    """Settings of the jobs that run a trained model."""

    features: Folder | None = Field(
        None, description="features of `raymotion features`, in place of extracting them in the same stream"
    )
    weights: tuple[Annotated[str, Metavar("[NAME=]FILE")], ...] = Field(
        (),
        description="weights file of the region extractor or the backbones, if the model was trained with one; "
        "NAME=FILE for one of several backbones (repeatable)",
    )
    ablation: Annotated[str, Metavar("NAME")] | None = Field(
        None,
        description="streams that a model of several may look at: all, context, body, face, face_body, face_context or "
        "body_context  [default: those that it was trained with]",
    )

    _several_weights = field_validator("weights", mode="before")(one_or_several)


@dataclass(frozen=True)
class JobSpec:
    """The specification of a batch job.

    Attributes:
        kind: `labels`, `region-features`.
        settings: the settings of the job.
        identity: everything besides the input rows that determines the output; a resumed job must have the same.
        sink: encodes the processed items.
        make_stages: torch device -> stages in order; the first one reads the images.
        vocabulary: vocabulary of the output, if any.
        model: information on the model for the record.
        notices: warnings for users of the output.
        finish: called after the last commit, before the job is marked complete; returns additions to the record.
        images: whether images are read, and whether a table without images is an error.
        columns: columns of the sample table that the stages read besides sample_id, image_uri and captions.
        keep_images_together: keep rows of one image in one shard and one batch; the table is ordered by image.
        check: raises if the job cannot run on this table; may return further notices.
        default_batch: default number of images in a batch, on a CPU and on a GPU.
        gpu: whether workers get a GPU by default, where there is one.
        most_shard_rows: largest default shard; a worker holds the output of one shard in memory.
    """

    kind: str
    settings: JobSettings
    identity: Mapping[str, Any]
    make_stages: Callable[[str], tuple[Stage, ...]]
    sink: Sink
    model: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    notices: tuple[str, ...] = ()
    finish: Callable[[str], Mapping[str, Any]] | None = None
    images: Literal["none", "optional", "required"] = "required"
    columns: tuple[str, ...] = ()
    keep_images_together: bool = False
    check: Callable[[pa.Table], Sequence[str] | None] | None = None
    default_batch: tuple[int, int] = (2, 16)
    gpu: bool = True
    most_shard_rows: int = 256


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=JobSettings)


def with_its_access(command: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorates a function of a job's settings, which then reads and writes with the access options they contain.

    Apply it outside the lock of the output folder, which may be in an object store too.
    """

    @functools.wraps(command)
    def inside(settings: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with access.using(patience=settings.store_patience, allow_http=settings.allow_http):
            return command(settings, *args, **kwargs)

    return inside


def resolve_precision(settings: JobSettings, device: str) -> str:
    """Returns the precision of the region extractor: as set; by default half on a GPU, full on a CPU."""
    return settings.precision or ("bfloat16" if device == "cuda" else "float32")
