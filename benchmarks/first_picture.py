"""How long a user waits for the first labelled picture, beside the imports that no model can do without.

    import   python -c "import torch, torchvision, transformers", in a process of its own
    here     `raymotion label` in a process of its own with --workers 0, from its start to the first commit
    ray      the same with --workers 1: a private Ray starts first

in turn, `--repeats` times; the medians are printed, and the ratio is here / import. The model is a student with the
image tower of raymotion[offline], the pictures are COCO's if `--pictures` names a folder of JPEG files, else synthetic.

    python benchmarks/first_picture.py --pictures ../shared/data/coco/val2017
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = "import torch, torchvision, transformers"
TOWER = "tf_efficientnet_lite0"
# A job that has not committed a shard by then has failed.
PATIENCE = 300.0


def make_model(folder: Path) -> None:
    """Writes a student whose image tower is bundled; what it says is of no importance here."""
    from raymotion.models.checkpoint import save_checkpoint
    from raymotion.models.inputs.captions import Captions
    from raymotion.models.inputs.picture import PictureInput
    from raymotion.models.outputs.multilabel import MultiLabel
    from raymotion.models.registry import get_kind
    from raymotion.models.student.config import StudentConfig
    from raymotion.models.student.start import initialise
    from raymotion.models.text.tokenizer import train_tokenizer
    from raymotion.vocabulary import MIKELS_8

    tokenizer = train_tokenizer([f"a caption of picture {i}" for i in range(50)], size=120)
    config = StudentConfig(image=TOWER, image_size=224, vocab_size=len(tokenizer))
    network = initialise(config, len(MIKELS_8), image_init=f"bundled:{TOWER}")
    inputs = [Captions(64, tokenizer=tokenizer), PictureInput(224)]
    save_checkpoint(folder, get_kind("student"), network, inputs, [MultiLabel(MIKELS_8)], training={})


def make_samples(folder: Path, pictures: str | None, count: int) -> Path:
    """Writes a sample table of `count` pictures."""
    import numpy as np
    from PIL import Image

    from raymotion.data.samples import table_from_rows, write_samples

    if pictures is None:
        rng = np.random.default_rng(0)
        paths = []
        for i in range(count):
            paths.append(folder / f"{i}.jpg")
            small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8))
            small.resize((640, 480)).save(paths[-1])
    else:
        paths = sorted(Path(pictures).glob("*.jpg"))[:count]
    rows = [
        {
            "sample_id": path.stem, "group_id": path.stem, "source": "b", "image_uri": str(path.resolve()),
            "captions": ["a caption"],
        }
        for path in paths
    ]  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows))
    return folder / "samples.parquet"


def seconds_to_import() -> float:
    """Returns the time of the imports alone."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.monotonic() - began


def seconds_to_first(samples: Path, model: Path, out: Path, workers: int) -> float:
    """Returns the time from the start of `raymotion label` to its first commit."""
    command = [
        sys.executable, "-m", "raymotion.cli.main", "label", str(samples), "--model", str(model), "--out", str(out),
        "--workers", str(workers), "--progress", "none",
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not any(out.glob("_commits/*")):
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                process.kill()
                raise SystemExit(f"no picture was labelled:\n{process.communicate()[0]}")
            time.sleep(0.01)
        first = time.monotonic() - began
        if process.wait() or process.returncode:
            raise SystemExit("the job failed after its first picture")
    return first


def main() -> None:
    """Measures and prints a table, and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="folder of JPEG files")
    parser.add_argument("--count", type=int, default=142, help="how many of them")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    found: dict[str, list[float]] = {"import": [], "here": [], "ray": []}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_model(folder / "model")
        samples = make_samples(folder, asked.pictures, asked.count)
        seconds_to_import()  # fills the disk's cache
        for repeat in range(asked.repeats):
            found["import"].append(seconds_to_import())
            for name, workers in (("here", 0), ("ray", 1)):
                found[name].append(seconds_to_first(samples, folder / "model", folder / f"{name}{repeat}", workers))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(f"{'':8}{'median':>8}{'fastest':>9}{'slowest':>9}   seconds, {asked.repeats} runs on {os.cpu_count()} cores")
    for name, values in found.items():
        print(f"{name:8}{medians[name]:8.2f}{min(values):9.2f}{max(values):9.2f}")
    ratio = statistics.median(h / i for h, i in zip(found["here"], found["import"], strict=True))
    result = {
        "first_picture_s": round(medians["here"], 3), "import_s": round(medians["import"], 3),
        "ratio": round(ratio, 3), "ray_first_picture_s": round(medians["ray"], 3),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
