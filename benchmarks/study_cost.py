"""What the five-stage study costs: forward passes of the backbones, and training of the heads.

forward passes   synthetic EMOTIC through `features embeddings` with the backbones of the small spaces, as the job
                 counts them, against the minimum that these spaces and the sample table ask for: one for each
                 distinct image or crop, stream, backbone and view. The study adds none: the pictures are removed
                 before it starts. Beside it the published study's, which runs its backbones again in every epoch, on
                 the same data.
head             persons in EMOTIC's numbers (23,266 / 3,315 / 7,203), 5,632 random features each, as a folder of
                 embeddings: 20 epochs of the weighted head, features read from the memory map and validation
                 included, against the bare matrix products of those epochs, in turn, in processes of their own. The
                 copy of the Parquet parts into the memory map, made once for all trials, is told apart.
study            `study run` on the small spaces with early stopping says what share of the epochs is left; times
                 the seconds of an epoch at full size that makes the study's cost.

python benchmarks/study_cost.py             # the full run, about 15 minutes on 2 cores
python benchmarks/study_cost.py --quick     # a few of everything: does it run?
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = {"train": 23_266, "val": 3_315, "test": 7_203}
DIMS = {"context": 1536, "body": 1536, "face": 2560}
LABELS, HIDDEN, EPOCHS, BATCH = 26, 256, 20, 512
CONFIGURATIONS, SEEDS = 40, 3
VIEWS = 2
# The public study: runs, epochs of each, passes over training (once to learn, once to be scored) and validation.
PUBLISHED_RUNS, PUBLISHED_EPOCHS = 38, 20
SPACES = Path(__file__).resolve().parents[1] / "tune_spaces" / "emotic-small"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def raymotion(*arguments: str) -> None:
    """One command of raymotion, as a user would give it."""
    command = [sys.executable, "-m", "raymotion.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"raymotion {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def call(role: str, *arguments: Any) -> dict[str, Any]:
    """A role in a process of its own, so that its memory and its threads are its own."""
    command = [sys.executable, __file__, "--role", json.dumps([role, *arguments])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Forward passes ------------------------------------------------------------------------------------------------------


def forward_passes(embeddings: str, samples: str) -> dict[str, Any]:
    """What the job counted, and what the sample table asks for."""
    from raymotion import storage
    from raymotion.data.samples import read_samples
    from raymotion.data.streams import STREAMS
    from raymotion.study.features import embedding_needs

    record = storage.read_json(storage.join(embeddings, "_job.json"))
    counted = sum(record["forward_passes"].values())
    table = read_samples(samples)
    # Images that could not be read have no embeddings, and need none.
    rows = [row for row, known in zip(table.to_pylist(), table_has(embeddings, table), strict=True) if known]
    needs = embedding_needs(str(SPACES))
    least = 0
    for stream in STREAMS:
        for level in ("none", *needs["levels"]):
            some = [row for row in rows if level == "none" or row["split"] == "train"]
            if stream == "context":
                distinct = len({row["image_uri"] for row in some})
            else:
                distinct = sum(row[f"{stream}_box"] is not None for row in some)
            least += distinct * (1 if level == "none" else VIEWS) * len(needs[stream])
    sizes = {name: sum(row["split"] == name for row in rows) for name in ("train", "val", "test")}
    in_training = PUBLISHED_RUNS * PUBLISHED_EPOCHS * 3 * (2 * sizes["train"] + sizes["val"])
    published = in_training + PUBLISHED_RUNS * 3 * sizes["test"]
    return {"counted": counted, "least": least, "published": published, "persons": sizes}


def table_has(embeddings: str, table: Any) -> list[bool]:
    from raymotion.data.embeddings import Embeddings

    return [bool(row >= 0) for row in Embeddings([embeddings]).rows(table.column("sample_id").to_pylist())]


# The head ------------------------------------------------------------------------------------------------------------


def write_full_size(folder: Path, share: float) -> tuple[str, str]:
    """A sample table and a folder of embeddings of EMOTIC's size (or a share of it), features at random."""
    import numpy as np
    import pyarrow as pa

    from raymotion import storage
    from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
    from raymotion.data.provenance import BOXES, MADE_FROM
    from raymotion.data.samples import table_from_rows, write_samples
    from raymotion.models.vision.backbones import BackboneIdentity
    from raymotion.vocabulary import get_vocabulary

    rng = np.random.default_rng(0)
    vocabulary = get_vocabulary("emotic-26")
    rates = np.linspace(0.5, 0.01, LABELS)
    shown = {"size": 224, "crop_pct": 1.0, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    identities = {
        stream: BackboneIdentity(name="random", weights="random:0", dim=dim, token_dim=dim, **shown).to_dict()
        for stream, dim in DIMS.items()
    }
    layout = EmbeddingLayout(
        {FeatureKey(stream, stream): FeatureShape(1, dim) for stream, dim in DIMS.items()},
        identities, {"none": 1}, 0,
    )  # fmt: skip
    rows, out = [], folder / "embeddings"
    for split, count in FULL.items():
        for i in range(max(8, int(share * count))):
            true = rng.random(LABELS) < rates
            labels = [label for label, has in zip(vocabulary.labels, true, strict=True) if has]
            name = f"emotic:{split}:{i}"
            rows.append({"sample_id": name, "group_id": name, "labels": labels, "split": split, "source": "random"})
    schema = layout.schema()
    for number, start in enumerate(range(0, len(rows), 1024)):
        some = rows[start : start + 1024]
        ids = pa.array([row["sample_id"] for row in some])
        columns = [ids, ids, pa.array([row["split"] for row in some]), ids]
        columns += [pa.nulls(len(some), own.type) for own in (*MADE_FROM, *BOXES)]
        for dim in DIMS.values():
            features = rng.standard_normal((len(some), dim), dtype=np.float32).astype(np.float16)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), dim))
        table = pa.table(columns, schema=schema)
        sha256, _ = storage.write_table(str(out / f"data/part-{number:05d}.parquet"), table)
        storage.write_json(str(out / "_commits" / f"part-{number:05d}.json"), {"sha256": sha256})
    storage.write_json(str(out / "_job.json"), {"status": "complete", "job": "embeddings"})
    samples = str(folder / "full.parquet")
    write_samples(samples, table_from_rows(rows, vocabulary))
    return samples, str(out)


def recipe_of(samples: str, embeddings: str) -> Any:
    from raymotion.models.fusion.recipe import FusionRecipe

    return FusionRecipe.model_validate(
        {
            "data": {"samples": samples, "embeddings": [embeddings]},
            "backbones": {stream: stream for stream in DIMS},
            "model": {"fusion": "weighted", "hidden": HIDDEN},
            "optimiser": {"epochs": EPOCHS, "patience": EPOCHS, "batch_size": BATCH, "clip": None},
        }
    )


def head(samples: str, embeddings: str, epochs: int) -> dict[str, Any]:
    """Our training, an epoch at a time as a trial runs it: `loading` is everything before the first one."""
    import torch

    from raymotion.batch.memory import keep_freed_memory
    from raymotion.train.loop import Run
    from raymotion.train.prepare import prepare_data
    from raymotion.train.task import Task

    keep_freed_memory()  # as every trial does
    torch.set_num_threads(cores())
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first one imports half of torch
    started = time.perf_counter()
    recipe = recipe_of(samples, embeddings)
    run = Run(Task(recipe, prepare_data(recipe)))
    loading = time.perf_counter() - started
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        run.step()
        seconds.append(time.perf_counter() - started)
    return {"loading": loading, "epochs": seconds, "peak_mb": peak_mb()}


def products(sizes: dict[str, int], epochs: int) -> dict[str, Any]:
    """The bare matrix products of those epochs, operands in memory: forward, and the gradients of the weights."""
    import torch

    from raymotion.batch.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    features = [torch.randn(sizes["train"], dim) for dim in DIMS.values()]
    held_out = [torch.randn(sizes["val"], dim) for dim in DIMS.values()]
    weights = [torch.randn(dim, HIDDEN) for dim in DIMS.values()]
    last = torch.randn(HIDDEN, LABELS)
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        for start in range(0, sizes["train"], BATCH):
            for own, weight in zip(features, weights, strict=True):
                some = own[start : start + BATCH]
                hidden = some @ weight
                _ = some.T @ hidden
            answers = hidden @ last
            _ = hidden.T @ answers
            _ = answers @ last.T
        for own, weight in zip(held_out, weights, strict=True):
            hidden = own @ weight
        _ = hidden @ last
        seconds.append(time.perf_counter() - started)
    return {"epochs": seconds, "peak_mb": peak_mb()}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few persons, few epochs, once")
    parser.add_argument("--persons", type=int, help="synthetic persons; default: 2000, with --quick 120")
    parser.add_argument("--repeats", type=int, default=3, help="paired runs of the head")
    arguments = parser.parse_args()
    if arguments.role:
        role, *rest = json.loads(arguments.role)
        roles: dict[str, Callable[..., dict[str, Any]]] = {
            "head": head, "products": products, "forward_passes": forward_passes,
        }  # fmt: skip
        print(json.dumps(roles[role](*rest)))
        return
    persons = arguments.persons or (120 if arguments.quick else 2000)
    epochs, repeats = (2, 1) if arguments.quick else (EPOCHS, arguments.repeats)
    with tempfile.TemporaryDirectory(prefix="raymotion-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        work = Path(folder)
        found = {**measure_head(work, epochs, repeats, 0.02 if arguments.quick else 1.0)}
        found |= measure_study(work, persons, epochs)
    # A share of the epochs that the small study ran, at the full size's seconds an epoch, one trial after the other.
    full = CONFIGURATIONS * SEEDS * EPOCHS * found["epoch_seconds"] / 60
    found["study_minutes_without_stopping"] = round(full, 1)
    found["study_minutes"] = round(full * found["epochs_left"], 1)
    print_table(found)
    names = ("forward_ratio", "forward_ratio_published", "head_ratio", "study_minutes", "peak_memory_mb")
    print(json.dumps({**{name: found[name] for name in names}, **found, "cores": cores()}))


def measure_head(work: Path, epochs: int, repeats: int, share: float) -> dict[str, Any]:
    samples, embeddings = write_full_size(work, share)
    sizes = {split: max(8, int(share * count)) for split, count in FULL.items()}
    copied = time.perf_counter()
    call("head", samples, embeddings, 1)  # the memory-mapped copy is made once, by the first who asks
    copied = time.perf_counter() - copied
    pairs = []
    for repeat in range(repeats):
        ours, bare = call("head", samples, embeddings, epochs), call("products", sizes, epochs)
        mine, theirs = ours["loading"] + sum(ours["epochs"]), sum(bare["epochs"])
        pairs.append((mine / theirs, mine, theirs, ours))
        told = f"loading {ours['loading']:.1f} s, epochs {sum(ours['epochs']):.1f} s, products {theirs:.1f} s"
        print(f"  head {repeat + 1}/{repeats}: {told}, ratio {mine / theirs:.3f}", flush=True)
    return {
        "head_ratio": round(statistics.median(pair[0] for pair in pairs), 3),
        "head_seconds": round(statistics.median(pair[1] for pair in pairs), 2),
        "products_seconds": round(statistics.median(pair[2] for pair in pairs), 2),
        "epoch_seconds": statistics.median(statistics.median(pair[3]["epochs"]) for pair in pairs),
        "loading_seconds": round(statistics.median(pair[3]["loading"] for pair in pairs), 2),
        "copy_seconds": round(copied, 1),
        "peak_memory_mb": round(max(pair[3]["peak_mb"] for pair in pairs)),
        "head_epochs": epochs,
        "head_rows": sizes["train"],
    }


def measure_study(work: Path, persons: int, epochs: int) -> dict[str, Any]:
    root, samples, embeddings, study = (str(work / name) for name in ("emotic", "emotic.parquet", "embedded", "study"))
    seconds: dict[str, float] = {}

    def timed(name: str, *command: str) -> None:
        started = time.perf_counter()
        raymotion(*command)
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)

    timed("synth", "data", "synth", "emotic", "--persons", str(persons), "--out", root)
    timed("prepare", "data", "prepare", "emotic", root, "--faces", f"{root}/faces.csv", "--out", samples)
    timed(
        "embeddings", "features", "embeddings", samples, "--study", str(SPACES), "--backbone-weights", "random:0",
        "--size", "64", "--views", str(VIEWS), "--out", embeddings,
    )  # fmt: skip
    passes = call("forward_passes", embeddings, samples)
    shutil.rmtree(root)  # a study that ran a backbone would have nothing to run it on
    timed(
        "study", "study", "run", str(SPACES), "--samples", samples, "--embeddings", embeddings, "--seeds", str(SEEDS),
        "--epochs", str(epochs), "--out", study,
    )  # fmt: skip
    cost = json.loads(Path(study, "study.json").read_text())["cost"]
    return {
        "forward_ratio": passes["counted"] / passes["least"],
        "forward_ratio_published": round(passes["published"] / passes["least"], 1),
        "forward_passes": passes["counted"],
        "forward_passes_published": passes["published"],
        "persons": passes["persons"],
        "seconds": seconds,
        "study_cost": cost,
        "epochs_left": round(cost["epochs"] / max(1, cost["epochs_without_stopping"]), 3),
    }


def print_table(found: dict[str, Any]) -> None:
    persons = ", ".join(f"{count:,} {split}" for split, count in found["persons"].items())
    rows = [
        ("forward passes", f"{found['forward_passes']:,}", f"of {persons} persons, all streams, backbones and views"),
        ("  against the minimum", f"{found['forward_ratio']:.3f}", "one for each image or crop, backbone and view"),
        (
            "  the published study",
            f"{found['forward_ratio_published']:.1f}",
            f"{PUBLISHED_RUNS} runs x {PUBLISHED_EPOCHS} epochs on the same persons, without views",
        ),
        ("head", f"{found['head_seconds']:.1f} s", f"{found['head_epochs']} epochs, {found['head_rows']:,} x 5,632"),
        ("  bare matrix products", f"{found['products_seconds']:.1f} s", "of those epochs, in the same run"),
        ("  ratio", f"{found['head_ratio']:.2f}", "median of the pairs; loading included"),
        ("  memory-mapped copy", f"{found['copy_seconds']:.0f} s", "made once; with the imports of its process"),
        ("  peak memory", f"{found['peak_memory_mb']:,} MB", "of the training process"),
        (
            f"study of {CONFIGURATIONS} x {SEEDS}",
            f"{found['study_minutes']:.0f} min",
            f"at full size, with early stopping ({found['epochs_left']:.0%} of the epochs)",
        ),
        ("", f"{found['study_minutes_without_stopping']:.0f} min", "without"),
        ("small study, measured", f"{sum(found['seconds'].values()):.0f} s", f"from nothing: {found['seconds']}"),
    ]
    print()
    for name, value, what in rows:
        print(f"{name:26}{value:>12}   {what}")


if __name__ == "__main__":
    main()
