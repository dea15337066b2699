"""Kills one labelling job again and again, damages its folder, and checks that nothing is lost, doubled or different.

Makes `--images` synthetic COCO pictures of which 1 % are damaged, and a small teacher of captions and regions;
labels them once undisturbed, and once with `--kills` times a `kill -9` of the driver, a Ctrl-C, a SIGTERM or a SIGHUP,
in turn and at random moments, each followed by the same command. A signal must end the job within ten seconds, with its
code and one line. After each of them something in the folder is damaged, in turn (`DAMAGE`); damage that a quick look
does not find (a bit flipped far from the end of a part) has to be found before the job is called complete.
Then: every sample is in the parts or in quarantine, exactly once; every damaged file is in quarantine with its
reason; the files are those of the undisturbed run, byte for byte; and how many samples were worked on more than once.

    python benchmarks/kill_resume.py                       # 2,000 images, 20 kills: about 15 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from label_throughput import make_teacher

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(samples: str, teacher: str, out: Path) -> list[str]:
    script = Path(sys.executable).with_name("raymotion")
    return [str(script), "label", samples, "--model", teacher, "--out", str(out), "--progress", "none"]


def heed_signals() -> None:
    """A shell's background job ignores Ctrl-C, and so would what it starts."""
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)


def stop(driver: subprocess.Popen[str], number: signal.Signals) -> float:
    """Sends the signal and looks how the job ends; seconds until then."""
    started = time.monotonic()
    driver.send_signal(number)
    _, err = driver.communicate()
    took = time.monotonic() - started
    # Before its one line a job may have told what was damaged in the turn before.
    told = [line for line in err.splitlines() if not line.startswith("warning: ")]
    if number != signal.SIGKILL and (driver.returncode != 128 + number or len(told) != 1 or took > 10):
        raise SystemExit(f"{number.name} ended the job with {driver.returncode} after {took:.1f} s: {err}")
    return took


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("part-*.p*q*"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ids(folder: Path) -> list[str]:
    tables = [pq.read_table(path, columns=["sample_id"]) for path in sorted(folder.glob("part-*"))]
    return list(pa.concat_tables(tables).column("sample_id").to_pylist())


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def exchange(a: Path, b: Path) -> None:
    other = b.read_bytes()
    b.write_bytes(a.read_bytes())
    a.write_bytes(other)


def damage(out: Path, turn: int, rng: random.Random) -> str:
    """Damages one thing in a folder, another one each turn; returns what."""
    commits = sorted((out / "_commits").glob("part-*.json"))
    parts = [out / "data" / commit.with_suffix(".parquet").name for commit in commits]
    kinds: dict[str, Callable[[], object]] = {
        "flip a bit in a part": lambda: flip(rng.choice(parts), rng),
        "cut a commit": lambda: os.truncate(rng.choice(commits), 40),
        "exchange two parts": lambda: exchange(*rng.sample(parts, 2)),
        "empty the manifest": lambda: os.truncate(out / "_manifest.pq", 0),
        "cut _job.json": lambda: os.truncate(out / "_job.json", 300),
        "flip a bit in a commit": lambda: flip(rng.choice(commits), rng),
        "empty a part": lambda: os.truncate(rng.choice(parts), 0),
        "remove a part": lambda: rng.choice(parts).unlink(),
        "flip a bit in the manifest": lambda: flip(out / "_manifest.pq", rng),
        "remove _job.json": lambda: (out / "_job.json").unlink(),
    }
    name = list(kinds)[turn % len(kinds)]
    needs = 2 if "parts" in name else 1 if "part" in name or "commit" in name else 0
    if len(commits) < needs or (not needs and not (out / "_job.json").exists()):
        return "nothing: there is too little yet"
    kinds[name]()
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds from a start to a kill, at most")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="raymotion-kill-") as folder:
        work = Path(folder)
        print(json.dumps(run(work, arguments.images, arguments.kills, arguments.longest, rng)))


def run(work: Path, images: int, kills: int, longest: float, rng: random.Random) -> dict[str, Any]:
    from raymotion.data.readers.coco import CocoReader
    from raymotion.data.samples import write_samples
    from raymotion.data.synthetic.collections import write_coco

    write_coco(str(work / "coco"), images, 0, corrupt=0.01)
    table, _ = CocoReader(root=work / "coco").read()
    samples = str(work / "samples.parquet")
    write_samples(samples, table)
    entries = json.loads((work / "coco/corrupt.json").read_text())
    damaged = {Path(entry["file"]).stem: entry["reason"] for entry in entries}
    teacher = make_teacher(work)

    whole, broken = work / "whole", work / "broken"
    started = time.monotonic()
    subprocess.run(command(samples, teacher, whole), check=True, stdout=subprocess.DEVNULL)
    undisturbed = time.monotonic() - started

    done_kills, landed, ended_in, harm = 0, [], [0.0], list[str]()
    while done_kills < kills:
        driver = subprocess.Popen(
            command(samples, teacher, broken), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=heed_signals,
        )  # fmt: skip
        delay = rng.uniform(0.5, longest)
        try:
            code = driver.wait(timeout=delay)
            if code:
                raise SystemExit(f"the job failed with {code} before it was killed")
            raise SystemExit(f"the job ended after {done_kills} kills: raise --images or lower --longest")
        except subprocess.TimeoutExpired:
            number = SIGNALS[done_kills % len(SIGNALS)]
            ended_in.append(stop(driver, number))
        done_kills += 1
        landed.append(len(list((broken / "_commits").glob("*.json"))))
        harm.append(damage(broken, done_kills - 1, rng))
        told = f"{landed[-1]} shards committed; {harm[-1]}"
        print(f"{number.name} {done_kills} after {delay:4.1f} s: {told}", flush=True)
    subprocess.run(command(samples, teacher, broken), check=True)

    wanted = table.column("sample_id").to_pylist()
    good, bad = ids(broken / "data"), ids(broken / "_quarantine")
    reasons = {
        row["sample_id"].removeprefix("coco:"): row["reason"]
        for path in (broken / "_quarantine").glob("*.pq")
        for row in pq.read_table(path).to_pylist()
    }
    record = json.loads((broken / "_job.json").read_text())
    result = {
        "images": images,
        "kills": done_kills,
        "longest_end_s": round(max(ended_in), 1),
        "damages": sum(not name.startswith("nothing") for name in harm),
        "done_again": sum(len(entry.get("done_again", [])) for entry in record["runs"]),
        "lost": len(set(wanted) - set(good) - set(bad)),
        "doubled": len(good) + len(bad) - len({*good, *bad}),
        "damaged": len(damaged),
        "quarantined_with_reason": sum(reasons.get(stem) == reason for stem, reason in damaged.items()),
        "quarantined_otherwise": len(bad) - len(damaged),
        "same_files": digests(whole) == digests(broken),
        "books_close": record["counts"]["in"] == record["counts"]["good"] + record["counts"]["quarantined"] == images,
        "undisturbed_s": round(undisturbed, 1),
    }
    print("\n".join(f"{name:>24}  {value}" for name, value in result.items()))
    if result["lost"] or result["doubled"] or not result["same_files"] or not result["books_close"]:
        raise SystemExit("FAILED")
    return result


if __name__ == "__main__":
    main()
