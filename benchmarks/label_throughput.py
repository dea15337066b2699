"""What the labelling job reaches beside plain code that does the same work, all in one run.

Two models: `small` (MobileNetV3-small of timm, 224 x 224, a linear head) and `detector` (Fast R-CNN
MobileNetV3-large-320, 36 regions, then a small VisualBERT). For each, images/s of

    job      raymotion's job on Ray, from the first actor's readiness to the last commit
    single   the best tuned single process: a decoding thread beside torch, malloc tuned, torch threads chosen by trial
    plain    by hand in as many processes as cores, one torch thread each, malloc tuned, from the first one's readiness
    model    the model alone on pictures in memory, in as many processes as cores

run in turn, `--repeats` times; the ratios are paired within a repetition, and their medians are printed. Weights are
random: they cost what trained ones do. Pictures: COCO's, if `--pictures` names a folder of JPEG files, else
synthetic ones.

    python benchmarks/label_throughput.py                  # the full run, about 40 minutes on 2 cores
    python benchmarks/label_throughput.py --quick          # a tenth of the images: does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXTRACTOR, WEIGHTS, REGIONS = "fasterrcnn_mobilenet_v3_large_320_fpn", "random:0", 36
CAPTIONS = ["a man rides a brown horse along the beach", "a horse and its rider near the water at sunset"]


class SmallModel:
    """The small model as a stage: resize, normalise, MobileNetV3-small, a linear head of 29."""

    name = "small"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        import timm
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch = torch
        self.model = timm.create_model("mobilenetv3_small_100", pretrained=False, num_classes=29).eval()
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
        self.scale = 1 / (torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255)
        with torch.inference_mode():
            self.model(torch.zeros(1, 3, 224, 224))

    def process(self, items: Sequence[Any]) -> None:
        torch = self.torch
        with torch.inference_mode():
            pictures = [
                torch.nn.functional.interpolate(
                    torch.from_numpy(item.pixels).permute(2, 0, 1)[None].float(), size=(224, 224), mode="bilinear"
                )
                for item in items
            ]
            logits = self.model((torch.cat(pictures) - self.mean) * self.scale)
            for item, row in zip(items, torch.sigmoid(logits).numpy(), strict=True):
                item.output["emotions"] = row


def stages_of(model: str, teacher: str) -> tuple[Any, ...]:
    from raymotion.models.checkpoint import read_checkpoint_info
    from raymotion.pipeline.plan import Options, make_plan
    from raymotion.pipeline.stages import DecodeImages

    if model == "small":
        return (DecodeImages(224), SmallModel())
    return make_plan(read_checkpoint_info(teacher), Options()).make_stages("float32")


def sink() -> Any:
    from raymotion.batch.labels import LabelSink
    from raymotion.learning.selection import SelectionPolicy
    from raymotion.models.outputs.multilabel import MultiLabel
    from raymotion.vocabulary import SOCRATIS_29

    return LabelSink([MultiLabel(SOCRATIS_29)], SelectionPolicy(), None, True)


BATCH = {"small": 16, "detector": 2}


# --- what each role measures: images/s


def job(model: str, samples: str, teacher: str, out: str) -> dict[str, Any]:
    """raymotion's job, as `raymotion label` runs it."""
    from raymotion.batch.cluster import available_cpus
    from raymotion.batch.job import run_job
    from raymotion.batch.spec import JobSettings, JobSpec

    started = time.time()
    spec = JobSpec(
        kind="labels",
        # On Ray, however few the images of a quick run are.
        settings=JobSettings(samples=samples, out=out, batch_size=BATCH[model], workers=available_cpus()),
        identity={"benchmark": model},
        make_stages=lambda device: stages_of(model, teacher),
        sink=sink(),
    )
    throughput = dict(run_job(spec).record["throughput"])
    return {
        "rate": throughput["images_per_second"],
        "overhead": time.time() - started - throughput["steady_seconds"],
        "startup": throughput["startup_seconds"],
        "finish": throughput["finish_seconds"],
    }


def plain(model: str, samples: str, teacher: str, out: str, part: int, parts: int) -> dict[str, Any]:
    """One of `parts` processes: its share of the rows, one torch thread, decoding in turn with the model."""
    from raymotion import storage
    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    items, stages = _load(model, samples, teacher, 1)
    ready = time.time()
    mine = items[part::parts]
    for start in range(0, len(mine), BATCH[model]):
        for stage in stages:
            if not stage.whole_shard:
                stage.process(mine[start : start + BATCH[model]])
    for stage in stages:
        if stage.whole_shard:
            stage.process(mine)
    storage.write_table(f"{out}/plain-{part}.parquet", sink().encode(mine))
    return {"ready": ready, "end": time.time(), "images": len(mine)}


def single(model: str, samples: str, teacher: str, out: str, threads: int) -> dict[str, Any]:
    """One process: a thread that decodes ahead, torch beside it."""
    from queue import Queue

    from raymotion import storage
    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    items, (decode, *others) = _load(model, samples, teacher, threads)
    size = BATCH[model]
    queue: Queue[list[Any] | None] = Queue(maxsize=4)

    def ahead() -> None:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            decode.process(batch)
            queue.put(batch)
        queue.put(None)

    ready = time.time()
    threading.Thread(target=ahead, daemon=True).start()
    while (batch := queue.get()) is not None:
        for stage in others:
            if not stage.whole_shard:
                stage.process(batch)
        for item in batch:
            item.pixels = None
    for stage in others:
        if stage.whole_shard:
            stage.process(items)
    storage.write_table(f"{out}/single.parquet", sink().encode(items))
    return {"ready": ready, "end": time.time(), "images": len(items)}


def model_alone(model: str, samples: str, teacher: str, out: str, part: int, parts: int) -> dict[str, Any]:
    """The model stages over pictures that are decoded already, again and again until as many as the share were seen."""
    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    items, stages = _load(model, samples, teacher, 1)
    return over_memory(items[part::parts], stages, BATCH[model])


def over_memory(items: Sequence[Any], stages: Sequence[Any], size: int) -> dict[str, Any]:
    """The stages after the first over pictures in memory, `size` at a time; the first one decodes 48 beforehand."""
    decode, *others = stages
    decoded = items[: min(len(items), 48)]
    decode.process(decoded)
    pictures = [item.pixels for item in decoded]
    ready = time.time()
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        for k, item in enumerate(batch):
            item.pixels = pictures[(start + k) % len(pictures)]
        for stage in others:
            if not stage.whole_shard:
                stage.process(batch)
        for item in batch:
            item.pixels = None
    for stage in others:
        if stage.whole_shard:
            stage.process(items)
    return {"ready": ready, "end": time.time(), "images": len(items)}


def items_of(samples: str, columns: Sequence[str] = ("sample_id", "image_uri", "captions")) -> list[Any]:
    """The rows of a sample table, as stages take them."""
    from raymotion.data.samples import read_samples
    from raymotion.pipeline.stages import Item

    return [Item(row) for row in read_samples(samples).select(list(columns)).to_pylist()]


def _load(model: str, samples: str, teacher: str, threads: int) -> tuple[list[Any], list[Any]]:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    items, stages = items_of(samples), list(stages_of(model, teacher))
    for stage in stages:
        stage.setup(threads, "cpu")
    return items, stages


# --- running the roles as processes


def call(role: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, "--role", json.dumps([role, *arguments])], stdout=subprocess.PIPE, text=True
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measured process failed with {process.returncode}")
    return dict(json.loads(text.strip().splitlines()[-1]))


def rate_of(answers: Sequence[dict[str, Any]]) -> float:
    seconds = max(a["end"] for a in answers) - min(a["ready"] for a in answers)
    return float(sum(a["images"] for a in answers) / seconds)


def together(role: str, *arguments: object) -> float:
    """The role in as many processes as cores at once."""
    parts = cores()
    processes = [call(role, *arguments, part, parts) for part in range(parts)]
    return rate_of([answer(process) for process in processes])


def cores() -> int:
    from raymotion.batch.cluster import available_cpus

    return available_cpus()


def peak_memory(process: subprocess.Popen[str]) -> tuple[float, dict[str, Any]]:
    """Highest sum, in MiB, of the proportional set sizes of a process and all that descend from it; and its answer."""
    import psutil

    peak, root = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for member in [root, *root.children(recursive=True)]:
            try:
                total += member.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
                continue
        peak = max(peak, total / 2**20)
        time.sleep(0.5)
    return peak, answer(process)


def measure(model: str, samples: str, teacher: str, work: Path, repeats: int) -> dict[str, Any]:
    trial = {t: rate_of([answer(call("single", model, samples, teacher, str(work), t))]) for t in (1, cores())}
    threads = max(trial, key=lambda t: trial[t])
    rows: list[dict[str, float]] = []
    for repeat in range(repeats):
        out = str(work / f"{model}-{repeat}")
        ours = answer(call("job", model, samples, teacher, out))
        rows.append(
            {
                "job": ours["rate"],
                "overhead": ours["overhead"],
                "startup": ours["startup"],
                "finish": ours["finish"],
                "single": rate_of([answer(call("single", model, samples, teacher, str(work), threads))]),
                "plain": together("plain", model, samples, teacher, str(work)),
                "model": together("model", model, samples, teacher, str(work)),
            }
        )
        print(
            f"  {model} {repeat + 1}/{repeats}: " + ", ".join(f"{k} {v:.1f}" for k, v in rows[-1].items()), flush=True
        )

    def median(values: Sequence[float]) -> float:
        return round(statistics.median(values), 3)

    return {
        **{
            f"{name}_images_per_second": median([row[name] for row in rows])
            for name in ("job", "single", "plain", "model")
        },
        "single_threads": threads,
        "ratio_single_process": median([row["job"] / row["single"] for row in rows]),
        "ratio_processes": median([row["job"] / row["plain"] for row in rows]),
        "ratio_model": median([row["job"] / row["model"] for row in rows]),
        "overhead_s": median([row["overhead"] for row in rows]),
        "startup_s": median([row["startup"] for row in rows]),
        "finish_s": median([row["finish"] for row in rows]),
    }


# --- inputs


def make_samples(work: Path, pictures: str | None, rows: int) -> str:
    """A sample table of `rows` rows over the pictures there are, in turn."""
    from raymotion.data.samples import table_from_rows, write_samples
    from raymotion.data.synthetic.collections import write_coco

    folder = Path(pictures) if pictures else work / "pictures" / "val2017"
    if not pictures and not folder.exists():
        write_coco(str(work / "pictures"), 150, 0)
    files = sorted(str(path) for path in folder.rglob("*.jpg"))
    path = str(work / f"samples-{rows}.parquet")
    table = table_from_rows(
        {
            "sample_id": f"x:{i}",
            "group_id": f"x:{i}",
            "image_uri": files[i % len(files)],
            "captions": CAPTIONS,
            "source": "x",
        }
        for i in range(rows)
    )
    write_samples(path, table)
    return path


def make_teacher(work: Path, extractor: str = EXTRACTOR, **shape: Any) -> str:
    """A VisualBERT with random weights and a tokenizer trained on a few captions; a small one unless `shape` says."""
    import torch

    from raymotion.models.checkpoint import save_checkpoint
    from raymotion.models.inputs.captions import Captions
    from raymotion.models.inputs.regions import RegionInput
    from raymotion.models.outputs.multilabel import MultiLabel
    from raymotion.models.registry import get_kind
    from raymotion.models.text.tokenizer import train_tokenizer
    from raymotion.models.vision.regions import identify
    from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
    from raymotion.vocabulary import SOCRATIS_29

    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, size=200)
    regions = identify(extractor, WEIGHTS, REGIONS)
    options = {"vocab_size": len(tokenizer), "visual_dim": regions.dim, "normalize_regions": True}
    config = TeacherConfig.model_validate({**options, **shape})
    folder = str(work / "teacher")
    save_checkpoint(
        folder,
        get_kind("teacher-visualbert"),
        VisualBertTeacher(config, len(SOCRATIS_29)),
        [Captions(64, tokenizer=tokenizer), RegionInput(regions)],
        [MultiLabel(SOCRATIS_29)],
        training={},
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["small", "detector"], choices=["small", "detector"])
    parser.add_argument("--pictures", help="folder of JPEG files")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory runs out")
    arguments = parser.parse_args()
    if arguments.role:
        role, *rest = json.loads(arguments.role)
        roles = {"job": job, "plain": plain, "single": single, "model": model_alone}
        print(json.dumps(roles[role](*rest)))
        return
    shrink = 10 if arguments.quick else 1
    repeats = 1 if arguments.quick else arguments.repeats
    counts = {"small": 4000 // shrink, "detector": 400 // shrink}
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work = Path(folder)
        teacher = make_teacher(work)
        results = {
            model: measure(model, make_samples(work, arguments.pictures, counts[model]), teacher, work, repeats)
            for model in arguments.models
        }
        memory: dict[int, float] = {}
        if not arguments.no_memory:
            for rows in (1000 // shrink, 8000 // shrink):
                samples = make_samples(work, arguments.pictures, rows)
                memory[rows], _ = peak_memory(call("job", "small", samples, teacher, str(work / f"memory-{rows}")))
    print(f"\n{'':10}{'job':>9}{'single':>9}{'plain':>9}{'model':>9}   images/s, medians of {repeats}")
    for name, values in results.items():
        rates = "".join(f"{values[f'{k}_images_per_second']:9.1f}" for k in ("job", "single", "plain", "model"))
        print(f"{name:10}{rates}   single process with {values['single_threads']} torch thread(s)")
    print(f"\n{'':10}{'/single':>9}{'/plain':>9}{'/model':>9}{'overhead':>10}   s before the first + after the last")
    for name, values in results.items():
        ratios = "".join(f"{values[k]:9.2f}" for k in ("ratio_single_process", "ratio_processes", "ratio_model"))
        print(f"{name:10}{ratios}{values['overhead_s']:10.1f}   {values['startup_s']:.1f} + {values['finish_s']:.1f}")
    few, many = min(memory, default=0), max(memory, default=0)
    ratio = round(memory[many] / memory[few], 3) if memory else None
    if memory:
        print(
            f"\npeak memory of all processes: {memory[few]:.0f} MiB at {few} images, "
            f"{memory[many]:.0f} MiB at {many}: {ratio}"
        )
    # The worse of the models for each figure; each model's own figures beside them.
    worst = {k: min(r[k] for r in results.values()) for k in ("ratio_single_process", "ratio_processes", "ratio_model")}
    overhead = max(r["overhead_s"] for r in results.values())
    print(json.dumps({**worst, "overhead_s": overhead, "memory_ratio": ratio, "cores": cores(), **results}))


if __name__ == "__main__":
    main()
