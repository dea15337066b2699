"""Pictures through Ray Data, and students trained on it: the same as without, in less memory."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from raymotion.errors import AccessDenied, InputError
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.student.recipe import StudentRecipe
from raymotion.train import stream
from raymotion.train.fit import fit
from raymotion.train.ingest import Ingest, plan_ingest
from raymotion.train.pictures import Portion, read_here

Write, Recipe = Callable[..., str], Callable[..., StudentRecipe]


def cpus_are_free(ray: Any, seconds: float = 20) -> bool:
    """Whether no task, actor or placement group holds a CPU any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


def by_value(reader: type) -> None:
    """Workers cannot import a test file: its classes travel with their code."""
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[reader.__module__])


@dataclass(frozen=True)
class Logged(PictureReader):
    """Writes down what it reads, and does not get into s3://locked."""

    log: str = field(kw_only=True)

    def read(self, uri: str | None, row: int, epoch: int, training: bool, on_kept: Any = None) -> np.ndarray | None:
        if uri == "s3://locked":
            raise AccessDenied("may not be read", path=uri)
        with open(self.log, "a") as file:
            file.write(f"{row}\n")
        return super().read(uri, row, epoch, training)

    def count(self) -> int:
        return len(Path(self.log).read_text().splitlines()) if Path(self.log).exists() else 0


@pytest.mark.slow
def test_ray_gives_what_threads_give(
    ray_local: Any, write_set: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Portions of odd sizes, several in a task and one over its size, over two epochs and more than one pipeline."""
    write_set(tmp_path, 40, damaged=(5, 17))
    uris: list[str | None] = [str(tmp_path / f"{i:03d}.png") for i in range(40)]
    uris[3] = None
    rng = np.random.default_rng(0)
    portions = []
    for epoch in range(2):
        order = rng.permutation(30)
        for split, rows, sizes in (("train", order, (3, 1, 5, 7, 1, 13)), ("val", np.arange(30, 40), (4, 6))):
            edges = np.cumsum((0, *sizes))
            portions += [Portion(split, epoch, rows[a:b]) for a, b in itertools.pairwise(edges)]
    monkeypatch.setattr(stream, "TASK_ROWS", 8)
    monkeypatch.setattr(stream, "PIPELINE_TASKS", 3)
    reader = PictureReader(32, "full", 0.4, seed=2)
    ours = list(stream.read_with_ray(portions, uris, reader, tasks=3, cpus_per_task=1.0))
    theirs = list(read_here(portions, uris, reader, threads=2))
    assert [p for p, _ in ours] == portions and len(ours) == len(theirs) == 16
    for (portion, got), (_, expected) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(got.pixels, expected.pixels)
        np.testing.assert_array_equal(got.status, expected.status)
        assert got.reasons == expected.reasons and set(got.reasons) == {5, 17} & set(portion.rows.tolist())
    assert cpus_are_free(ray_local)


@pytest.mark.slow
def test_a_long_stream_waits_for_its_consumer_and_ends_with_it(
    ray_local: Any, write_set: Write, tmp_path: Path
) -> None:
    """50 tasks of 64 pictures of 192 KiB: twice what the object store of 300 MB holds."""
    by_value(Logged)
    write_set(tmp_path, 1)
    uris: list[str | None] = [str(tmp_path / "000.png")] * 64
    portions = [Portion("val", 0, np.arange(64)) for _ in range(50)]
    reader = Logged(256, log=str(tmp_path / "log"))
    reading: Any = stream.read_with_ray(portions, uris, reader, tasks=3, cpus_per_task=1.0)
    next(reading)
    seen, still = 0, time.monotonic()
    while time.monotonic() - still < 1.5:  # until nothing more is read ahead
        if reader.count() != seen:
            seen, still = reader.count(), time.monotonic()
        time.sleep(0.1)
    ahead = seen // 64 - 1
    assert ahead < 25, f"{ahead} portions of {portions[0].rows.size * 192 // 1024} MiB wait for a consumer that sleeps"
    reading.close()
    assert cpus_are_free(ray_local)
    # A task that was under way may end; no other begins.
    after = reader.count()
    time.sleep(1.0)
    assert reader.count() <= after + 64 < 50 * 64


def test_a_denied_permission_in_a_task_ends_the_stream_as_itself(
    ray_local: Any, write_set: Write, tmp_path: Path
) -> None:
    by_value(Logged)
    write_set(tmp_path, 4)
    uris: list[str | None] = [*(str(tmp_path / f"{i:03d}.png") for i in range(3)), "s3://locked"]
    portions = [Portion("train", 0, np.arange(4))]
    reader = Logged(32, log=str(tmp_path / "log"))
    with pytest.raises(AccessDenied, match=r"s3://locked: may not be read$"):
        list(stream.read_with_ray(portions, uris, reader, tasks=1, cpus_per_task=1.0))
    assert cpus_are_free(ray_local)


@pytest.fixture(scope="module")
def samples(write_set: Write, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), 64)


def curve(info: CheckpointInfo) -> np.ndarray:
    return np.array([epoch["val_bce"] for epoch in info.training["history"]])


@pytest.fixture(scope="module")
def alone(samples: str, student_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> list[CheckpointInfo]:
    """Runs in this process with seeds 0 to 3."""
    import torch

    folder = tmp_path_factory.mktemp("alone")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = [fit(recipe_for(student_recipe, samples, seed=seed), folder / str(seed)).info for seed in range(4)]
    torch.set_num_threads(before)
    return made


def recipe_for(student_recipe: Recipe, samples: str, **more: Any) -> StudentRecipe:
    return student_recipe(samples, optimiser={"epochs": 5, "lr": 1e-2}, **more)


@pytest.mark.slow
@pytest.mark.timeout(300)  # a worker group is started twice
def test_a_killed_worker_goes_on_to_the_weights_of_an_undisturbed_run_without_ray(
    ray_local: Any, samples: str, student_recipe: Recipe, alone: list[CheckpointInfo], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_once(metrics: Mapping[str, Any]) -> None:
        if metrics["epoch"] >= 2 and not killed:
            for child in psutil.Process().children(recursive=True):
                if any("RayTrainWorker" in part for part in (child.name(), *child.cmdline())):
                    killed.append(child.pid)
                    os.kill(child.pid, signal.SIGKILL)

    info = fit(recipe_for(student_recipe, samples, workers=1), tmp_path / "s", progress=kill_once).info
    assert killed
    attempts = [epoch["attempt"] for epoch in info.training["history"]]
    assert attempts[0].endswith(f"-{killed[0]}") and attempts[-1] != attempts[0], "the run was not interrupted"
    # To the last digit, but for how many threads summed: Ray's worker takes more where there are more cores.
    np.testing.assert_allclose(curve(info), curve(alone[0]), atol=1e-5)
    ours, theirs = (load_file(Path(one.folder, "model.safetensors")) for one in (info, alone[0]))
    for name in theirs:
        np.testing.assert_allclose(ours[name].numpy(), theirs[name].numpy(), atol=1e-5, err_msg=name)
    assert cpus_are_free(ray_local), "the stream of a finished run still decodes"


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_two_workers_learn_as_one_within_the_noise_of_seeds(
    ray_local: Any, samples: str, student_recipe: Recipe, alone: list[CheckpointInfo], tmp_path: Path
) -> None:
    two = fit(recipe_for(student_recipe, samples, workers=2), tmp_path / "s").info
    curves = np.stack([curve(info) for info in alone])
    spread = curves.std(axis=0, ddof=1)
    assert len(curve(two)) == 5
    # 4 standard deviations of 4 seeds, and never less than a hundredth of a nat.
    assert (np.abs(curve(two) - curves.mean(axis=0)) < np.maximum(4 * spread, 0.01)).all(), (curve(two), curves)
    assert curve(two)[-1] < curve(two)[0] - 0.02 and two.reads == ("captions", "picture")


@pytest.mark.slow
def test_many_damaged_pictures_end_a_run_on_ray_with_one_line(
    ray_local: Any, write_set: Write, student_recipe: Recipe, tmp_path: Path
) -> None:
    bad = write_set(tmp_path / "set", damaged=(0, 4, 8, 12, 16))
    with pytest.raises(InputError, match=r"pictures could not be read \(such as .*\.png: image_") as told:
        fit(student_recipe(bad, workers=1, failures=0), tmp_path / "s")
    assert "\n" not in str(told.value)
    assert cpus_are_free(ray_local)


def test_training_workers_leave_room_for_decoding(student_recipe: Recipe) -> None:
    """Else each waits for pictures that nobody has a CPU to decode."""
    for workers in range(1, 7):
        for cpus in range(1, 14):
            recipe = student_recipe("s", workers=workers)
            try:
                plan = plan_ingest(recipe, [{"CPU": cpus}], decodes=True)
            except InputError as error:
                assert "CPU" in str(error) and cpus <= workers / 2
                continue
            assert workers * plan.worker_cpus + plan.task_cpus <= cpus
            if plan.worker_cpus == 1:
                assert workers * (plan.worker_cpus + plan.tasks * plan.task_cpus) <= cpus
    assert plan_ingest(student_recipe("s", workers=4), [{"CPU": 4}], decodes=False) == Ingest()
    assert plan_ingest(student_recipe("s", workers=1, data={"decode_tasks": 3}), [{"CPU": 8}], decodes=True).tasks == 3
