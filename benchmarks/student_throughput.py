"""What student training through Ray reaches beside a tuned single-process PyTorch loop, all in one run.

Images/s through decoding, augmentation and a training step of the public student (`recipes/student-gru-cnn.yaml`:
224 x 224, batches of 64), from the end of the warm-up steps to the last one; what comes before the first step is
start-up, and is told apart.

    ours        `raymotion train` with `workers: 1`: Ray Data decodes, one Ray Train worker trains
    loader      by hand: torch's DataLoader, whose workers make whole batches, the loop beside them
    threads     by hand: threads of the training process decode some batches ahead

The loops by hand have the same pictures, augmentation (the same function), model, loss and optimiser, and malloc tuned.
Which of them, with how many workers or threads and how many torch threads, is chosen by trial; then ours and the best
are run in turn, `--repeats` times, and the median of the paired ratios is printed. Pictures: COCO's, if `--pictures`
names a folder of JPEG files, else synthetic ones.

    python benchmarks/student_throughput.py                # the full run, about 15 minutes on 2 cores
    python benchmarks/student_throughput.py --quick        # a few steps of each: does it run?
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CAPTIONS = ["a man rides a brown horse along the beach", "a horse and its rider near the water at sunset"]
RECIPE, BATCH, VALIDATION = "student-gru-cnn", 64, 64
# Steps that count come after these: whatever was decoded before the first step is used up.
WARM_UP = 0.2


def recipe_of(samples: str, workers: int) -> Any:
    """One epoch of the shipped recipe."""
    from raymotion.train.recipe import load_recipe

    options: dict[str, Any] = {
        "data": {"samples": samples},
        "optimiser": {"epochs": 1, "batch_size": BATCH},
        "workers": workers,
        "use_gpu": False,
    }
    return load_recipe(RECIPE, options=options)


def rate(steps: Sequence[tuple[float, int]]) -> float:
    """Images/s of the steps after the warm-up. `steps`: when each ended, and how many images it had."""
    first = max(1, int(WARM_UP * len(steps)))
    return sum(rows for _, rows in steps[first:]) / (steps[-1][0] - steps[first - 1][0])


def result(started: float, steps: Sequence[tuple[float, int]]) -> dict[str, float]:
    return {"rate": rate(steps), "startup": steps[0][0] - started, "steps": len(steps)}


# --- what each role measures


def ours(samples: str, out: str) -> dict[str, float]:
    """raymotion's training, as `raymotion train` runs it; its worker notes when each step ends."""
    from raymotion.train import fit as module

    times = Path(out).with_suffix(".steps.json")
    worker = module._worker

    def watched(config: dict[str, Any]) -> None:
        import json
        import time

        from raymotion.train.batches import BatchLoader

        train, steps = BatchLoader.train, []

        def timed(self: Any, epoch: int) -> Iterator[Any]:
            for batch in train(self, epoch):
                yield batch
                steps.append((time.time(), batch.rows))
            times.write_text(json.dumps(steps))

        BatchLoader.train = timed  # type: ignore[method-assign]
        worker(config)

    module._worker = watched
    started = time.time()
    module.fit(recipe_of(samples, 1), out)
    return result(started, json.loads(times.read_text()))


def by_hand(samples: str, kind: str, readers: int, threads: int) -> dict[str, float]:
    """A plain loop in this process: `readers` workers of a DataLoader, or threads, and `threads` torch threads."""
    started = time.time()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    import numpy as np
    import torch
    from torch import nn

    from raymotion.models.inputs.captions import pad
    from raymotion.train.loop import _optimiser, schedule
    from raymotion.train.pictures import Portion, read_here
    from raymotion.train.prepare import prepare_data
    from raymotion.train.task import Task

    torch.set_num_threads(threads)
    recipe = recipe_of(samples, 0)
    data = prepare_data(recipe)
    torch.manual_seed(recipe.seed)
    task = Task(recipe, data)
    model = task.build()
    optimiser = _optimiser(model, task)
    rows = np.random.default_rng(recipe.seed).permutation(data.splits["train"])
    portions = [Portion("train", 0, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    uris, reader = task.streamed.addresses, task.reader()
    captions: Any = task.inputs["captions"]
    answers = data.targets_of(task.outputs[0]).arrays["hard"]

    def batches() -> Iterator[torch.Tensor]:
        if kind == "threads":
            for _, pictures in read_here(portions, uris, reader, threads=readers):
                yield torch.from_numpy(pictures.pixels)
            return
        own: Any = Batches(portions, uris, reader)
        yield from torch.utils.data.DataLoader(own, batch_size=None, num_workers=readers, prefetch_factor=4)

    model.train()
    draw = np.random.default_rng(0)
    steps: list[tuple[float, int]] = []
    for number, (portion, pixels) in enumerate(zip(portions, batches(), strict=True)):
        chosen = [captions.tokens[draw.integers(captions.first[r], captions.first[r + 1])] for r in portion.rows]
        ids, mask = pad(chosen, pad_id=captions.tokenizer.pad_token_id)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * schedule(number, len(portions), recipe.optimiser.warmup)
        logits = model(torch.from_numpy(ids), torch.from_numpy(mask), pixels, None)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(answers[portion.rows]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip)
        optimiser.step()
        loss.item()
        steps.append((time.time(), len(portion.rows)))
    return result(started, steps)


class Batches:
    """A map-style data set for the DataLoader: one item is a whole batch of pictures, decoded and augmented."""

    def __init__(self, portions: Sequence[Any], uris: Sequence[str | None], reader: Any) -> None:
        self.portions, self.uris, self.reader = portions, uris, reader

    def __len__(self) -> int:
        return len(self.portions)

    def __getitem__(self, number: int) -> Any:
        import torch

        portion = self.portions[number]
        some = [self.uris[row] for row in portion.rows]
        return torch.from_numpy(self.reader.read_all(some, portion.rows.tolist(), 0, True).pixels)


# --- running the roles as processes


def call(role: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--role", json.dumps([role, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a measured process failed with {done.returncode}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def cores() -> int:
    from raymotion.batch.cluster import available_cpus

    return available_cpus()


def make_samples(work: Path, pictures: str | None, images: int) -> str:
    """A sample table of `images` training rows, and a few for validation, over the pictures there are, in turn."""
    from raymotion.data.samples import table_from_rows, write_samples
    from raymotion.data.synthetic.collections import write_coco
    from raymotion.vocabulary import SOCRATIS_29

    folder = Path(pictures) if pictures else work / "pictures" / "val2017"
    if not pictures and not folder.exists():
        write_coco(str(work / "pictures"), 150, 0)
    files = sorted(str(path) for path in folder.rglob("*.jpg"))
    path = str(work / f"samples-{images}.parquet")
    table = table_from_rows(
        (
            {
                "sample_id": f"x:{i}", "group_id": f"x:{i}", "image_uri": files[i % len(files)], "captions": CAPTIONS,
                "labels": [SOCRATIS_29.labels[i % 29], SOCRATIS_29.labels[i % 7]] if i % 29 != i % 7 else ["joy"],
                "split": "train" if i < images else "val", "source": "x",
            }
            for i in range(images + VALIDATION)
        ),
        SOCRATIS_29,
    )  # fmt: skip
    write_samples(path, table)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few images, once")
    parser.add_argument("--images", type=int, help="training images of a run; default: 6400, with --quick 640")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", help="folder of JPEG files")
    arguments = parser.parse_args()
    if arguments.role:
        role, *rest = json.loads(arguments.role)
        roles: dict[str, Callable[..., dict[str, float]]] = {"ours": ours, "by_hand": by_hand}
        print(json.dumps(roles[role](*rest)))
        return
    images = arguments.images or (640 if arguments.quick else 6400)
    repeats = 1 if arguments.quick else arguments.repeats
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        work = Path(folder)
        samples = make_samples(work, arguments.pictures, images)
        few = make_samples(work, arguments.pictures, max(6 * BATCH, images // 4))
        counts = sorted({1, cores()})
        trials: dict[tuple[str, int, int], float] = {}
        for kind, readers, threads in itertools.product(("loader", "threads"), counts, counts):
            trials[kind, readers, threads] = call("by_hand", few, kind, readers, threads)["rate"]
            print(f"  trial: {_named(kind, readers, threads)}: {trials[kind, readers, threads]:.1f}", flush=True)
        best = max(trials, key=lambda key: trials[key])
        rows: list[tuple[dict[str, float], dict[str, float]]] = []
        for repeat in range(repeats):
            rows.append((call("ours", samples, str(work / f"out-{repeat}")), call("by_hand", samples, *best)))
            mine, theirs = rows[-1]
            told = f"ours {mine['rate']:.1f}, by hand {theirs['rate']:.1f}, ratio {mine['rate'] / theirs['rate']:.3f}"
            print(f"  {repeat + 1}/{repeats}: {told}", flush=True)

    def median(values: Iterator[float]) -> float:
        return round(statistics.median(values), 3)

    found = {
        "images_per_second": median(mine["rate"] for mine, _ in rows),
        "baseline_images_per_second": median(theirs["rate"] for _, theirs in rows),
        "ratio": median(mine["rate"] / theirs["rate"] for mine, theirs in rows),
        "startup_seconds": median(mine["startup"] for mine, _ in rows),
        "baseline_startup_seconds": median(theirs["startup"] for _, theirs in rows),
    }
    print(f"\n{'':44}{'images/s':>10}{'start-up s':>12}   medians of {repeats}, {images} images")
    for name, key in (("raymotion train, 1 worker", ""), (f"by hand: {_named(*best)}", "baseline_")):
        print(f"{name:44}{found[f'{key}images_per_second']:10.1f}{found[f'{key}startup_seconds']:12.1f}")
    print(f"ratio {found['ratio']:.3f}")
    tried = {_named(*key): round(value, 1) for key, value in trials.items()}
    print(json.dumps({**found, "baseline": _named(*best), "trials": tried, "images": images, "cores": cores()}))


def _named(kind: str, readers: int, threads: int) -> str:
    what = "DataLoader worker" if kind == "loader" else "decode thread"
    return f"{readers} {what}{'s' * (readers > 1)}, {threads} torch thread{'s' * (threads > 1)}"


if __name__ == "__main__":
    main()
