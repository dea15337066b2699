"""What raymotion reaches on a GPU: labelling, training, attacks, bf16 beside float32. One command, parts by name.

    python benchmarks/gpu.py                               # all parts that fit into 8 minutes, on one GPU
    python benchmarks/gpu.py --part attack --part joint    # some of them
    python benchmarks/gpu.py --cpu --tiny                  # does it run? Without a GPU, in two minutes on two cores

    attack      queries a second of `raymotion attack pixels`, on the GPU and on all cores
    joint       training of a joint space with a tuned backbone: an epoch beside the step alone, bf16 beside float32
    classifier  the same of a FractalNet and a ResNet-50
    precision   predictions in bf16 beside float32, of the same weights
    label       the labelling job (Fast R-CNN, VisualBERT) beside the model alone and decoding alone
    embed       the embedding job (ResNet-50, Swin-B) beside the same
    student     `raymotion train` of the student on Ray beside the step alone
    oom         a job that asks for batches which do not fit into memory
    decode      JPEGs by Pillow, by torchvision on the CPU and on the GPU, and how far their pixels differ

Every part runs in a process of its own, so that one that fails or hangs costs no figure of another. A figure that is
missing is a row with its error, and the exit code is then 1; without a GPU it is 3. The last line is one JSON object.
Weights are random: they cost what trained ones do. Pictures are synthetic, of noise and edges, about 80 kB each.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from label_throughput import cores, items_of, make_teacher, over_memory

# A part does not begin with less time than this left, in seconds.
LEAST_SECONDS = 20.0
WIDTH, HEIGHT = 640, 480
# The colour that a picture's label shows in, so that there is something to learn.
CASTS = ((60, 0, 0), (0, 60, 0), (0, 0, 60), (60, 60, 0), (60, 0, 60), (0, 60, 60), (70, 70, 70), (-60, -60, -60))
KEY = "sample_id"
# Mean standard deviation of a model's probabilities between pictures from which it tells them apart.
TELLS_APART = 0.01
# Exit code without a GPU: not that of mistyped options, after which `make bench` stops.
NO_GPU = 3


@dataclass(frozen=True)
class Size:
    """How much the parts measure, and of which networks.

    Attributes:
        pictures: JPEG files. seconds: how long a rate is measured. held: batches in memory for the step alone.
        attacked: pictures to attack. queries: for each of them, on the device and on the cores beside it.
        populations: candidates of a generation.
        fractal, resnet: shapes. classifier_batch, student_batch: pictures of a step.
        joint: settings of the recipe.
        extractor, teacher: of the labelling job. backbones: of the embedding job.
        asked: batch size that is asked for in `oom`.
        fits: what a CPU pretends to have memory for; 0: `oom` needs a GPU.
    """

    pictures: int
    seconds: float
    held: int
    attacked: int
    queries: tuple[int, int]
    populations: tuple[int, ...]
    fractal: Mapping[str, Any]
    resnet: Mapping[str, Any]
    classifier_batch: int
    student_batch: int
    joint: Mapping[str, Any]
    extractor: str
    teacher: Mapping[str, Any]
    backbones: tuple[str, ...]
    asked: int
    fits: int


FULL = Size(
    pictures=2000, seconds=3.0, held=8, attacked=2, queries=(1000, 100), populations=(20, 400),
    fractal={"image_size": 64, "filters": [64, 128, 256, 512]}, resnet={"depth": 50, "image_size": 224},
    classifier_batch=128, student_batch=256,
    joint={
        "backbone": "resnet50", "size": 224, "tuned_blocks": 2, "tuned_text": True,
        "optimiser": {"batch_size": 128},
    },
    extractor="fasterrcnn_resnet50_fpn", teacher={"size": "base"},
    backbones=("resnet50", "swin_base_patch4_window7_224"), asked=4096, fits=0,
)  # fmt: skip
TINY = Size(
    pictures=32, seconds=0.2, held=2, attacked=2, queries=(20, 20), populations=(10,),
    fractal={"image_size": 16, "filters": [4, 8]}, resnet={"depth": 50, "image_size": 32, "width": 4},
    classifier_batch=8, student_batch=8,
    joint={
        "backbone": "test_resnet", "size": 32, "pooled_stages": 2, "tuned_blocks": 1,
        "model": {"text": "lstm", "dim": 16}, "optimiser": {"batch_size": 8},
    },
    extractor="fasterrcnn_mobilenet_v3_large_320_fpn", teacher={"size": "tiny"}, backbones=("test_resnet",),
    asked=16, fits=3,
)  # fmt: skip


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One figure of a part.

    Attributes:
        of: names of the figures that it is a share of: of the smallest of them.
        goal: least share, or the figure's own least value. most: its own largest value.
        error: why the figure is missing.
    """

    part: str
    name: str
    device: str
    value: float | None = None
    unit: str = ""
    of: tuple[str, ...] = ()
    goal: float | None = None
    most: float | None = None
    error: str | None = None

    @property
    def verdict(self) -> str:
        """What the table says beside the figure."""
        if self.value is None or (self.goal is None and self.most is None):
            return ""
        if self.goal is not None:
            return f"goal {self.goal:g}: {'reached' if self.value >= self.goal else 'missed'}"
        return f"goal below {self.most:g}: {'reached' if self.value < float(self.most or 0) else 'missed'}"


def with_shares(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with those of their shares: of the figures that a row names, and of the GPU's by the CPU's."""
    found = {(row.part, row.device, row.name): row for row in rows if row.value is not None}
    result: list[Row] = []
    for row in rows:
        result.append(replace(row, goal=None) if row.of else row)
        if row.value is None:
            continue
        others = [own for name in row.of if (own := found.get((row.part, row.device, name))) is not None]
        if row.of and len(others) == len(row.of):
            least = min(others, key=lambda own: float(own.value or 0))
            if least.value:
                share = row.value / least.value
                result.append(Row(row.part, f"{row.name} / {least.name}", row.device, share, "x", goal=row.goal))
        beside = found.get((row.part, "cuda", row.name)) if row.device == "cpu" else None
        if beside is not None and beside.value and row.value:
            result.append(Row(row.part, f"{row.name}, GPU / the cores", "both", beside.value / row.value, "x"))
    return result


def line(row: Row) -> str:
    """Formats a row for people."""
    value = "-" if row.value is None else f"{row.value:,.4g}" if abs(row.value) < 10_000 else f"{row.value:,.0f}"
    # A share stands below its figure, whose name need not be said again.
    name = f"    / {row.name.split(' / ')[1]}" if " / " in row.name else row.name
    tail = f"ERROR: {row.error}" if row.error else row.verdict
    return f"{row.part:11}{name:64}{row.device:5}{value:>10} {row.unit:12}{tail}".rstrip()


class Bench:
    """What a part is given, in its process.

    Attributes:
        device: `cuda` or `cpu`. main: whether it is the device in question, and not the cores beside a GPU.
    """

    def __init__(self, part: str, device: str, main: bool, size: Size, pictures: str, work: str, rows: str) -> None:
        self.part, self.device, self.main, self.size, self.rows = part, device, main, size, rows
        self.pictures = sorted(str(path) for path in Path(pictures).glob("*.jpg"))
        self.work = Path(work)

    def tell(self, name: str, value: float, unit: str, **more: Any) -> None:
        """Keeps a figure at once: what comes after it may fail."""
        self._write(Row(self.part, name, self.device, float(value), unit, **more))

    @contextlib.contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Turns an error into the row of a figure that is missing."""
        try:
            yield
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = (str(error).strip().splitlines() or [""])[0]
            self._write(Row(self.part, name, self.device, error=f"{type(error).__name__}: {text}"[:300]))

    def _write(self, row: Row) -> None:
        with open(self.rows, "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    @property
    def threads(self) -> int:
        """How many threads of torch measure the cores; one where it only has to run, beside whatever else does."""
        return 1 if self.size is TINY else cores()

    def folder(self, name: str) -> str:
        """A folder that is not there yet."""
        return str(self.work / f"{self.part}-{self.device}-{name}".replace(" ", "-").replace("/", "-"))

    def samples(self, name: str = "samples", rows: int | None = None, **columns: Any) -> str:
        """A sample table: label by label, one picture in ten for validation; `columns` replace those of a row."""
        from raymotion.data.samples import table_from_rows, write_samples
        from raymotion.vocabulary import MIKELS_8

        path = self.folder(f"{name}.parquet")
        table = table_from_rows(
            (
                {
                    "sample_id": f"x:{i}", "group_id": f"x:{i}", "source": "synthetic",
                    "image_uri": self.pictures[i % len(self.pictures)],
                    "captions": [f"a picture of {MIKELS_8.labels[i % 8]}, number {i}", f"the {i}th, {i % 8} of eight"],
                    "labels": [MIKELS_8.labels[i % 8]], "split": "val" if i % 10 == 0 else "train",
                    **{column: values[i] for column, values in columns.items()},
                }
                for i in range(rows or len(self.pictures))
            ),
            MIKELS_8,
        )  # fmt: skip
        write_samples(path, table)
        return path

    def rate(self, call: Callable[[], Any], rows: int) -> float:
        """Rows a second of a call that is repeated; the first two calls do not count."""
        import torch

        def wait() -> None:
            if self.device == "cuda":
                torch.cuda.synchronize()

        for _ in range(2):
            call()
        wait()
        started, calls = time.monotonic(), 0
        while calls < 2 or time.monotonic() - started < self.size.seconds:
            call()
            wait()
            calls += 1
        return rows * calls / (time.monotonic() - started)


# --- attack ----------------------------------------------------------------------------------------------------------


def attack(bench: Bench) -> None:
    """Pixel attacks in this process, with the same number of changed pixels and random pixels beside the search."""
    from raymotion.robustness.pixel_attack import BATCH

    for name, kind, shape, side in (
        ("FractalNet, pictures of its size", "fractal", bench.size.fractal, bench.size.fractal["image_size"]),
        (f"ResNet-50, pictures of {WIDTH} x {HEIGHT}", "preact-resnet", bench.size.resnet, None),
    ):
        model = untrained(recipe_of(kind, bench.samples(kind), model=shape), bench.folder(f"{kind}-model"))
        pictures = bench.pictures[: bench.size.attacked]
        if side is not None:
            pictures = [resized(path, bench.folder(f"{Path(path).stem}.png"), side) for path in pictures]
        samples, target = as_predicted(bench, kind, model, pictures)
        for population in bench.size.populations:
            what = f"{name}, population {population}"
            alone = f"{what}, network alone"
            with bench.measuring(alone):
                rows = min(population, BATCH[bench.device == "cuda"])  # the attack sends no more at a time
                bench.tell(alone, forward_alone(bench, model, shape["image_size"], rows), "pictures/s")
            with bench.measuring(what):
                rate = queries_a_second(bench, samples, model, target, what, population)
                bench.tell(what, rate, "queries/s", of=(alone,))


def forward_alone(bench: Bench, model: str, side: int, rows: int) -> float:
    """Pictures a second of a classifier on tensors on the device, in the precision of the job."""
    import torch

    from raymotion.models.checkpoint import load_model
    from raymotion.models.outputs.base import forward

    torch.set_num_threads(bench.threads)
    own = load_model(model, device=bench.device)
    given = {
        "images": torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8, device=bench.device),
        "image_mask": torch.ones(rows, dtype=torch.bool, device=bench.device),
    }
    own.network.eval()

    def call() -> None:
        half = bench.device == "cuda"
        with torch.inference_mode(), torch.autocast(bench.device, torch.bfloat16, enabled=half):
            forward(own.network, given, own.outputs, rows)

    return bench.rate(call, rows)


def as_predicted(bench: Bench, name: str, model: str, pictures: Sequence[str]) -> tuple[str, str]:
    """A table in which the model is right, since others are not attacked, and the label that it believes in least."""
    import raymotion

    said = raymotion.label(list(pictures), model, progress=False)
    names = list(said.attrs["labels"])
    answers = [[name] for name in said[names].idxmax(axis=1)]
    samples = bench.samples(f"{name}-attacked", len(pictures), image_uri=list(pictures), labels=answers)
    return samples, str(said[names].mean().idxmin())


def queries_a_second(bench: Bench, samples: str, model: str, target: str, name: str, population: int) -> float:
    """Pictures sent to the model by the attack's stage, a second of that stage."""
    import pyarrow.compute as pc

    from raymotion.batch.label_dataset import read_parts
    from raymotion.robustness.goals import Aim
    from raymotion.robustness.pixel_attack import ATTACKS, PixelAttackSettings, attack_pixels

    found = attack_pixels(
        PixelAttackSettings(
            samples=samples, out=bench.folder(name), model=model, aim=Aim(target=target), split="all", pixels=(1,),
            queries=bench.size.queries[not bench.main], population=population, gradients=False, bootstrap=0,
            workers=0, cpus_per_worker=None if bench.device == "cuda" else float(bench.threads),
        ),
        progress="none",
    )  # fmt: skip
    sent = sum(pc.sum(part.column("sent")).as_py() or 0 for _, part in read_parts(f"{found.out}/{ATTACKS}", ["sent"]))
    return float(sent / found.job.record["throughput"]["stage_seconds"]["attack"])


def resized(path: str, target: str, side: int) -> str:
    """A picture of another size, as PNG."""
    from PIL import Image

    Image.open(path).resize((side, side)).save(target)
    return target


# --- training --------------------------------------------------------------------------------------------------------


def recipe_of(kind: str, samples: str, **settings: Any) -> Any:
    """Two epochs of a kind in this process, of which the first warms up."""
    from raymotion.config import load_settings, merge
    from raymotion.models.registry import get_kind

    basis = {"kind": kind, "data": {"samples": samples}, "workers": 0, "optimiser": {"epochs": 2, "patience": 9}}
    return load_settings(get_kind(kind).recipe, options=merge(basis, settings))


def untrained(recipe: Any, folder: str) -> str:
    """The checkpoint of a network as its kind builds it."""
    from raymotion.models.checkpoint import save_checkpoint
    from raymotion.train.prepare import prepare_data
    from raymotion.train.task import Task

    task = Task(recipe, prepare_data(recipe), threads=cores())
    save_checkpoint(folder, task.kind, task.build(), task.described(), task.outputs, training={})
    return folder


@contextlib.contextmanager
def in_precision(device: str, precision: str) -> Iterator[None]:
    """Lets training steps compute in this precision; by itself the loop takes bfloat16 on a GPU alone."""
    import torch

    from raymotion.train import loop

    forward = loop.forward

    def cast(*arguments: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return forward(*arguments)

    loop.forward = cast  # type: ignore[attr-defined]
    try:
        yield
    finally:
        loop.forward = forward  # type: ignore[attr-defined]


class Held:
    """A loader whose batches are on the device already: those of one epoch, some of them several times."""

    def __init__(self, batches: Sequence[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def train(self, epoch: int) -> Iterator[Any]:
        yield from itertools.islice(itertools.cycle(self.batches), self.steps)


def step_alone(run: Any, bench: Bench) -> float:
    """Samples a second of the loop's steps on batches that are on the device."""
    from raymotion.train import loop
    from raymotion.train.batches import BatchLoader
    from raymotion.train.schedule import steps_per_epoch

    with contextlib.closing(BatchLoader(run.task, run.workers, first_epoch=0)) as loader:
        batches = list(itertools.islice(loader.train(0), bench.size.held))
    run.state.epoch = 0
    held = Held(batches, steps_per_epoch(run.task.recipe, run.task.samples_per_epoch, run.workers.world))
    rates: list[float] = []
    started = time.monotonic()
    while len(rates) < 3 or time.monotonic() - started < bench.size.seconds:
        told = loop._train_epoch(
            run.wrapped, run.model, run.optimiser, run.served, run.task, held, run.state, run.workers
        )
        rates.append(told[1])
    return statistics.median(rates[1:])


def train_in(bench: Bench, name: str, recipe: Any, precision: str) -> None:
    """Tells of two epochs from files, and of the steps alone."""
    import torch

    from raymotion.train import loop
    from raymotion.train.prepare import prepare_data
    from raymotion.train.task import Task
    from raymotion.train.workers import Workers

    task = Task(recipe, prepare_data(recipe), threads=cores())
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with in_precision(bench.device, precision):
        torch.set_num_threads(bench.threads)
        run = loop.Run(task, workers=Workers(device=bench.device))
        with contextlib.closing(run):
            while not run.done:
                told = run.step()
            step = f"{name}, {precision}, step alone"
            plain = (f"{name}, float32, step alone",) if precision != "float32" else ()
            bench.tell(step, step_alone(run, bench), "samples/s", of=plain)
            bench.tell(f"{name}, {precision}, epoch", float(run.speed or 0), "samples/s", of=(step,), goal=0.9)
            bench.tell(f"{name}, {precision}, loss of epoch 2", told["train_loss"], "")
    if bench.device == "cuda":
        bench.tell(f"{name}, {precision}, memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def train_in_both(bench: Bench, name: str, recipe: Any) -> None:
    """Trains in float32 and in bfloat16."""
    for precision in ("float32", "bfloat16"):
        with bench.measuring(f"{name}, {precision}"):
            train_in(bench, name, recipe, precision)


def joint(bench: Bench) -> None:
    """A joint space whose backbone learns too."""
    settings = bench.size.joint
    recipe = recipe_of("joint", bench.samples(), weights="random:0", use_gpu=bench.device == "cuda", **settings)
    train_in_both(bench, f"joint with {settings['backbone']}", recipe)


def classifier(bench: Bench) -> None:
    """Classifiers of whole pictures."""
    samples = bench.samples()
    for name, kind, shape in (
        ("FractalNet", "fractal", bench.size.fractal),
        ("ResNet-50", "preact-resnet", bench.size.resnet),
    ):
        optimiser = {"batch_size": bench.size.classifier_batch}
        use_gpu = bench.device == "cuda"
        train_in_both(bench, name, recipe_of(kind, samples, model=shape, optimiser=optimiser, use_gpu=use_gpu))


def student(bench: Bench) -> None:
    """The public student: its step alone, then the whole training on Ray."""
    from raymotion.train.fit import fit
    from raymotion.train.loop import SPEED
    from raymotion.train.recipe import load_recipe

    options: dict[str, Any] = {
        "data": {"samples": bench.samples()}, "use_gpu": bench.device == "cuda", "workers": 0,
        "optimiser": {"epochs": 2, "batch_size": bench.size.student_batch},
    }  # fmt: skip
    precision = "bfloat16" if bench.device == "cuda" else "float32"
    recipe = load_recipe("student-gru-cnn", options=options)
    with bench.measuring("student in this process"):
        train_in(bench, "student in this process", recipe, precision)
    with bench.measuring("student on Ray"):
        epochs: list[Mapping[str, Any]] = []
        recipe = load_recipe("student-gru-cnn", options={**options, "workers": 1})
        fit(recipe, bench.folder("student"), progress=epochs.append)
        step = f"student in this process, {precision}, step alone"
        bench.tell("student on Ray, epoch 2", epochs[-1][SPEED], "samples/s", of=(step,), goal=0.9)


# --- jobs ------------------------------------------------------------------------------------------------------------


def placements(bench: Bench) -> dict[str, dict[str, Any]]:
    """Where a job runs: here, in one actor of Ray, and (labelling) in two with half a GPU each."""
    placed: dict[str, dict[str, Any]] = {"here": {"workers": 0}}
    if bench.size is FULL or bench.part == "label":  # Ray starts once where it only has to run
        placed["on Ray"] = {"workers": 1}
    if bench.device == "cuda" and bench.size is FULL and bench.part == "label":
        placed["on Ray, two halves of the GPU"] = {
            "workers": 2, "gpus_per_worker": 0.5, "cpus_per_worker": max(1, cores() // 2),
        }  # fmt: skip
    return placed


def job_beside_its_parts(
    bench: Bench,
    name: str,
    run: Callable[[str, Mapping[str, Any]], Any],
    stages: Sequence[Any],
    alone: Callable[[Sequence[Any], Sequence[Any], int], float],
    columns: Sequence[str],
    goal: float,
) -> None:
    """A job in every place, beside decoding alone, the stages on pictures in memory, and the network alone.

    Args:
        run: runs the job into a folder, with settings of its placement; returns its summary.
        stages: of the job, on the device.
        alone: images/s of the networks on tensors on the device, for stages, items and a batch size.
        goal: images/s of the job.
    """
    # Embeddings come so fast that the pictures have to be seen several times.
    again = 4 if bench.size is FULL and bench.part == "embed" else 1
    samples = bench.samples(name, again * len(bench.pictures))
    batch = 16 if bench.device == "cuda" else 2
    decode, network = f"{name}: decoding alone, {cores()} threads", f"{name}: network alone, on tensors"
    with bench.measuring(decode):
        bench.tell(decode, decoded_a_second(items_of(samples, columns), stages[0]), "images/s")
    with bench.measuring(network):
        for stage in stages:
            stage.setup(1, bench.device)  # as the job does it
        items = items_of(samples, columns)[: 2 * batch]
        stages[0].process(items)
        bench.tell(network, alone(stages, items, batch), "images/s")
    memory = f"{name}: stages alone, pictures in memory"
    with bench.measuring(memory):
        told = over_memory(items_of(samples, columns), stages, batch)
        bench.tell(memory, told["images"] / (told["end"] - told["ready"]), "images/s", of=(network,))
    del stages
    if bench.device == "cuda":
        import torch

        torch.cuda.empty_cache()
    for place, settings in placements(bench).items():
        what = f"{name}: job {place}"
        with bench.measuring(what):
            record = run(samples, {"out": bench.folder(f"{name}-{place}"), **settings}).record
            rate = record["throughput"]
            bench.tell(what, rate["images_per_second"], "images/s", of=(decode, network), goal=0.9)
            bench.tell(f"{what}: start", rate["startup_seconds"], "s")
            for stage, seconds in rate["stage_seconds"].items():
                bench.tell(f"{what}: {stage}", seconds, "s of stage")
            if bench.size is FULL and place == "on Ray":
                bench.tell(f"{what}, by the goal", rate["images_per_second"], "images/s", goal=goal)


def decoded_a_second(items: Sequence[Any], decode: Any) -> float:
    """Images/s of the first stage in as many threads as cores."""
    started = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda item: decode.process([item]), items))
    failed = [item.failure for item in items if item.failure is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} pictures failed: {failed[0]}")
    return len(items) / (time.monotonic() - started)


def label(bench: Bench) -> None:
    """Regions and VisualBERT in one stream."""
    from raymotion.batch.labels import LabelSettings
    from raymotion.batch.labels import label as label_job
    from raymotion.models.checkpoint import read_checkpoint_info
    from raymotion.pipeline.plan import Options, make_plan

    teacher = make_teacher(Path(bench.folder("model")), bench.size.extractor, **bench.size.teacher)
    plan = make_plan(read_checkpoint_info(teacher), Options())

    def run(samples: str, settings: Mapping[str, Any]) -> Any:
        return label_job(LabelSettings(samples=samples, model=(teacher,), **settings), progress="none")

    stages = plan.make_stages(precision_on(bench.device))
    job_beside_its_parts(
        bench, "Fast R-CNN and teacher", run, stages, teacher_alone(bench), (KEY, "image_uri", "captions"), 200
    )


def teacher_alone(bench: Bench) -> Callable[[Sequence[Any], Sequence[Any], int], float]:
    """Images/s of the detector on prepared pictures, then of the teacher on their regions."""

    def alone(stages: Sequence[Any], items: Sequence[Any], batch: int) -> float:
        import torch

        _, regions, predict = stages
        own = regions.extractor
        some = items[:batch]
        images, sizes = own.prepare([item.pixels for item in some])

        def find() -> None:
            with torch.inference_mode():
                own.detector.find(images, sizes, own.count, own.dtype)

        found = bench.rate(find, len(some))
        regions.process(some)
        evidence = {one.name: one.collect(some) for one in predict.inputs}
        told = bench.rate(lambda: predict.model.predict(evidence, precision=predict.precision), len(some))
        return 1 / (1 / found + 1 / told)

    return alone


def embed(bench: Bench) -> None:
    """The pooled features of a backbone."""
    from raymotion.batch.embeddings import EmbeddingSettings, plan_streams
    from raymotion.batch.embeddings import embed as embedding_job
    from raymotion.pipeline.embed import DecodeOnce, EmbedStreams

    for backbone in bench.size.backbones:
        chosen: dict[str, Any] = {"context": (backbone,), "backbone_weights": ("random:0",)}

        def run(samples: str, settings: Mapping[str, Any], chosen: Any = chosen) -> Any:
            return embedding_job(EmbeddingSettings(samples=samples, **chosen, **settings), progress="none")

        plan, weights = plan_streams(EmbeddingSettings(samples="", out="out", **chosen))
        stages = (DecodeOnce(), EmbedStreams(plan, weights, precision_on(bench.device)))
        columns = (KEY, "image_uri", "group_id", "split", "body_box", "face_box")
        job_beside_its_parts(bench, backbone, run, stages, backbone_alone(bench, backbone), columns, 4000)


def backbone_alone(bench: Bench, name: str) -> Callable[[Sequence[Any], Sequence[Any], int], float]:
    """Images/s of a backbone on prepared pictures."""

    def alone(stages: Sequence[Any], items: Sequence[Any], batch: int) -> float:
        import numpy as np
        import torch

        from raymotion.models.vision import timm_models

        own = stages[1].backbones[name]
        pixels = np.stack([own.prepare(item.pixels) for item in items])
        pixels = np.concatenate([pixels] * (max(1, 256 // len(items)) if bench.device == "cuda" else 1))
        tensor = torch.from_numpy(pixels).to(bench.device).contiguous(memory_format=own.memory_format)

        def forward() -> None:
            half = own.dtype != torch.float32
            with torch.inference_mode(), torch.autocast(bench.device, own.dtype, enabled=half):
                timm_models.features_of(own.model, tensor, own.identity.pooled_stages)

        return bench.rate(forward, len(tensor))

    return alone


def precision_on(device: str) -> str:
    """The precision that a job takes by itself."""
    return "bfloat16" if device == "cuda" else "float32"


# --- precision -------------------------------------------------------------------------------------------------------


def precision(bench: Bench) -> None:
    """Probabilities of the same weights in both precisions, and how many answers differ."""
    from raymotion.train.fit import fit

    samples = bench.samples()
    with bench.measuring("ResNet that was trained"):
        optimiser = {"batch_size": 16, "epochs": 1 if bench.size is TINY else 3, "lr": 2e-3}
        recipe = recipe_of(
            "preact-resnet", samples, model={"image_size": 32, "width": 16}, optimiser=optimiser,
            use_gpu=bench.device == "cuda",
        )  # fmt: skip
        compare(bench, "ResNet that was trained", samples, fit(recipe, bench.folder("trained")).info.folder)
    with bench.measuring("teacher with random weights"):
        teacher = make_teacher(Path(bench.folder("teacher")), bench.size.extractor, **bench.size.teacher)
        compare(bench, "teacher with random weights", bench.samples("some", len(bench.pictures) // 8), teacher)


def compare(bench: Bench, name: str, samples: str, model: str) -> None:
    """Labels in both precisions. A goal is reached or missed only on a GPU, by a model that tells pictures apart.

    Random weights hardly do: their answers are nearly tied, and so are those of all pictures. On a CPU classifiers
    compute in float32 whatever was asked for.
    """
    import numpy as np

    from raymotion.batch.label_dataset import open_labels
    from raymotion.batch.labels import LabelSettings
    from raymotion.batch.labels import label as label_job

    found = {}
    for each in ("float32", "bfloat16"):
        out = bench.folder(f"{name}-{each}")
        label_job(LabelSettings(samples=samples, model=(model,), out=out, precision=each, workers=0), progress="none")
        table = open_labels(out).sort_values(KEY)
        found[each] = np.stack([table[label] for label in table.attrs["labels"]], axis=1)
    full, half = found.values()
    spread = float(full.std(axis=0).mean())
    judged = bench.device == "cuda" and spread > TELLS_APART
    most, goal = (2e-3, 0.99) if judged else (None, None)
    if bench.device == "cpu":
        name += ", no goal on a CPU"
    bench.tell(f"{name}: deviation between pictures", spread, "")
    bench.tell(f"{name}: mean difference of probabilities", np.abs(full - half).mean(), "", most=most)
    bench.tell(f"{name}: largest difference", np.abs(full - half).max(), "")
    bench.tell(f"{name}: same highest label", (full.argmax(1) == half.argmax(1)).mean(), "share", goal=goal)


# --- memory ----------------------------------------------------------------------------------------------------------


def oom(bench: Bench) -> None:
    """Labels in batches that do not fit. A CPU pretends to run out of memory, which would end the machine's other work.

    Tells which batches the detector was given, how many of them failed, and how many rows came out.
    """
    import torch

    from raymotion.batch.labels import LabelSettings
    from raymotion.batch.labels import label as label_job
    from raymotion.models.vision.regions import RegionExtractor

    asked = rows = bench.size.asked
    teacher = make_teacher(Path(bench.folder("model")), bench.size.extractor, **bench.size.teacher)
    given: list[tuple[int, bool]] = []
    extract = RegionExtractor.__call__

    def watched(self: Any, pictures: Sequence[Any]) -> Any:
        given.append((len(pictures), False))
        if bench.size.fits and len(pictures) > bench.size.fits and bench.device == "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        found = extract(self, pictures)
        given[-1] = (len(pictures), True)
        return found

    RegionExtractor.__call__ = watched  # type: ignore[method-assign]
    started = time.monotonic()
    with bench.measuring(f"batches of {asked}"):
        record = label_job(
            LabelSettings(
                samples=bench.samples(rows=rows), model=(teacher,), out=bench.folder("labels"), batch_size=asked,
                shard_rows=asked, workers=0,
            ),
            progress="none",
        ).record  # fmt: skip
        seconds = time.monotonic() - started
        fitted = [size for size, fits in given[1:] if fits]  # the first call warms up
        bench.tell(f"batches of {asked}: rows with an answer", record["counts"]["good"] / rows, "share", goal=1.0)
        bench.tell(f"batches of {asked}: those that did not fit", sum(not fits for _, fits in given), "batches")
        bench.tell(f"batches of {asked}: largest that fitted", max(fitted), "images")
        bench.tell(f"batches of {asked}: mean of those that fitted", statistics.mean(fitted), "images")
        said = any("memory was too small" in notice for notice in record["notices"])
        bench.tell(f"batches of {asked}: says so", said, "", goal=float(not all(fits for _, fits in given)))
        bench.tell(f"batches of {asked}: all of it", rows / seconds, "images/s")


# --- decode ----------------------------------------------------------------------------------------------------------


def decode(bench: Bench) -> None:
    """Full-size JPEGs. A decoder that is not Pillow's has to give its pixels, and all of them."""
    import numpy as np
    import torch
    import torchvision

    from raymotion.data.images.decode import decode_rgb
    from raymotion.pipeline.stages import DecodeImages

    files = [Path(path).read_bytes() for path in bench.pictures]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    for name, side in (("Pillow", None), ("Pillow, reduced for 224 px", 224)):
        with bench.measuring(name):
            bench.tell(name, decoded_a_second(items_of(bench.samples()), DecodeImages(side)), "images/s")

    def gap(data: bytes, pixels: torch.Tensor) -> float:
        ours = decode_rgb(data).astype(np.int16)
        return float(np.abs(ours - pixels.permute(1, 2, 0).cpu().numpy()).mean())

    def judged(name: str, decoded: Sequence[torch.Tensor], seconds: float) -> None:
        bench.tell(name, len(files) / seconds, "images/s", of=("Pillow",))
        with ThreadPoolExecutor(cores()) as pool:
            gaps = list(pool.map(gap, files, decoded))
        bench.tell(f"{name}: mean difference of a pixel from Pillow's", np.mean(gaps), "levels")
        # A picture that was skipped is black or grey.
        wrong = sum(own > 8 for own in gaps)
        bench.tell(f"{name}: pictures that are others", wrong, "pictures", most=1)

    with bench.measuring("torchvision on the CPU"):
        started = time.monotonic()
        with ThreadPoolExecutor(cores()) as pool:
            decoded = list(pool.map(torchvision.io.decode_jpeg, tensors))
        judged("torchvision on the CPU", decoded, time.monotonic() - started)
    if bench.device == "cuda":
        with bench.measuring("torchvision on the GPU"):
            torchvision.io.decode_jpeg(tensors[:16], device="cuda")
            torch.cuda.synchronize()
            started, decoded = time.monotonic(), []
            for start in range(0, len(tensors), 64):
                decoded += torchvision.io.decode_jpeg(tensors[start : start + 64], device="cuda")
            torch.cuda.synchronize()
            judged("torchvision on the GPU", decoded, time.monotonic() - started)


# In the order of their worth; parts that are measured on the cores too.
PARTS: dict[str, Callable[[Bench], None]] = {
    "attack": attack, "joint": joint, "classifier": classifier, "precision": precision, "label": label, "embed": embed,
    "student": student, "oom": oom, "decode": decode,
}  # fmt: skip
BESIDE_THE_CPU = ("attack",)


# --- the command -----------------------------------------------------------------------------------------------------


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files with what costs a decoder: edges, and noise; 80 kB each."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)

    def write(i: int) -> None:
        rng = np.random.default_rng([0, i])
        coarse = Image.fromarray(rng.integers(40, 216, (12, 16, 3), np.uint8))
        picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(40):
            x, y, w, h = rng.integers(0, (WIDTH, HEIGHT, 160, 120)).tolist()
            draw.rectangle((x, y, x + w, y + h), outline=tuple(rng.integers(0, 256, 3).tolist()), width=3)
        noise = rng.normal(0, 10, (HEIGHT, WIDTH, 1)) + CASTS[i % 8]
        Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)).save(
            folder / f"{i:05d}.jpg", quality=80
        )

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))


class Watch:
    """A GPU's use while a part runs, as nvidia-smi says it twice a second.

    Args:
        gpu: its id, as nvidia-smi takes it: the machine may have others. None: nothing is watched.
    """

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.said: list[list[float]] = []

    def __enter__(self) -> Watch:
        if self.gpu is None:
            return self
        command = [
            "nvidia-smi", f"--id={self.gpu}", "--query-gpu=utilization.gpu,memory.used",
            "--format=csv,noheader,nounits", "-lms=500",
        ]  # fmt: skip
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return self
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        for text in self.process.stdout or ():
            with contextlib.suppress(ValueError):
                self.said.append([float(value) for value in text.split(",")])

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "process"):
            self.process.terminate()
            self.process.wait()

    def rows(self, part: str) -> list[Row]:
        """The mean use and the highest memory; none if nothing was watched, or nvidia-smi is not there."""
        if not self.said:
            return []
        use, memory = zip(*self.said, strict=True)
        return [
            Row(part, "GPU in use, mean of the part", "cuda", statistics.mean(use), "%"),
            Row(part, "GPU memory, highest of the part", "cuda", max(memory) / 1024, "GiB"),
        ]


def measure(part: str, device: str, main: bool, tiny: bool, pictures: Path, work: Path, seconds: float) -> list[Row]:
    """Runs a part in its own process; an error or the end of its time is one more row."""
    rows = work / f"{part}-{device}.rows"
    log = work / f"{part}-{device}.log"
    role = [part, device, main, tiny, str(pictures), str(work), str(rows)]
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}
    failed: str | None = None
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "--role", json.dumps(role)], stdout=output, stderr=output, env=environment
        )
        try:
            if process.wait(timeout=seconds):
                tail = log.read_text(errors="replace").strip().splitlines() or [""]
                failed = f"ended with {process.returncode}: {tail[-1][:200]}"
        except subprocess.TimeoutExpired:
            failed = f"stopped after {seconds:.0f} s"
        finally:
            process.kill()
            process.wait()
    found = [Row(**{**own, "of": tuple(own["of"])}) for own in map(json.loads, read_lines(rows))]
    if failed is not None:
        found.append(Row(part, "the rest of the part", device, error=failed))
    if any(row.error for row in found):
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr, flush=True)
    return found


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file; none if it is not there."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def role(part: str, device: str, main: bool, tiny: bool, pictures: str, work: str, rows: str) -> None:
    """A part in its process."""
    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    PARTS[part](Bench(part, device, main, TINY if tiny else FULL, pictures, work, rows))


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    commit = None
    with contextlib.suppress(OSError):  # no git
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
        commit = done.stdout.strip() or None
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None, "cores": cores(),
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "commit": commit, "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def main() -> None:
    """Measures, prints a table and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="measure it (repeatable); default: all")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU")
    parser.add_argument("--tiny", action="store_true", help="little of everything: does it run?")
    parser.add_argument("--minutes", type=float, default=8.0, help="parts that would begin later are left out")
    asked = parser.parse_args()
    if asked.role:
        role(*json.loads(asked.role))
        return
    size = TINY if asked.tiny else FULL
    parts = list(dict.fromkeys(asked.part or PARTS))
    if asked.cpu and not size.fits and "oom" in parts:
        if asked.part:
            parser.error("--part oom runs out of a GPU's memory, which a CPU pretends with --tiny only")
        parts.remove("oom")
    import torch

    if not asked.cpu and not torch.cuda.is_available():
        print("error: PyTorch finds no GPU here. Measure on the CPU with --cpu.", file=sys.stderr)
        raise SystemExit(NO_GPU)
    device = "cpu" if asked.cpu else "cuda"
    gpu = None if asked.cpu else f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    began = time.monotonic()
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    told = machine(device)
    print(", ".join(f"{name} {value}" for name, value in told.items() if value is not None), flush=True)
    steps = [
        (part, place)
        for part in parts
        for place in (("cuda", "cpu") if device == "cuda" and part in BESIDE_THE_CPU else (device,))
    ]
    with tempfile.TemporaryDirectory(prefix="raymotion-gpu-") as folder:
        pictures = Path(folder, "pictures")
        write_pictures(pictures, size.pictures)

        def run(step: tuple[str, str]) -> list[Row]:
            part, place = step
            clock, left = time.monotonic(), 60 * asked.minutes - (time.monotonic() - began)
            if left < LEAST_SECONDS:
                return [Row(part, "the part", place, error=f"left out: {asked.minutes:g} minutes are over")]
            with Watch(gpu if place == "cuda" else None) as watch:
                found = measure(part, place, place == device, asked.tiny, pictures, Path(folder), left)
            seconds[f"{part} {place}"] = round(time.monotonic() - clock, 1)
            return found + watch.rows(part)

        # Where nothing is measured, two at a time: most of it is imports.
        with ThreadPoolExecutor(2 if asked.tiny else 1) as pool:
            for found in pool.map(run, steps):
                known = len(with_shares(rows))
                rows += found
                for row in with_shares(rows)[known:]:
                    print(line(row), flush=True)
    rows = with_shares(rows)
    failed = [row for row in rows if row.error]
    print(f"\n{len(rows)} figures in {time.monotonic() - began:.0f} s, {len(failed)} of them missing")
    figures = [{name: value for name, value in asdict(row).items() if value not in (None, "", ())} for row in rows]
    print(json.dumps({**told, "tiny": asked.tiny, "seconds": seconds, "failed": len(failed), "rows": figures}))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
