"""Ray, found or started, and whether a plan of actors fits on it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymotion import interrupts
from raymotion.batch.address import ADDRESS_VARIABLE, CLIENT, PRIVATE_LABEL, resolve
from raymotion.batch.ray_folder import PREFIX, ray_folder
from raymotion.batch.ray_processes import RayProcesses, starting_ray
from raymotion.errors import InputError, RunFailed

# The object store carries shard numbers and one-row records, and weights during training: never pixels.
OBJECT_STORE_BYTES = 256 * 1024**2
LONGEST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes of the path of a Unix socket
COMPLAINT = re.compile(r"\[\S+ \S+ [EFC] ")  # a line of Ray's logs: [date time level process thread] file:line: text


@contextlib.contextmanager
def connect(address: str | None, *, cpus: int | None = None) -> Iterator[None]:
    """Connects to Ray, or starts it, for the duration of the block.

    A Ray that this process is already connected to is used and left alone. Without an address a Ray of our own is
    started on this machine, in its own temporary folder, and ended afterwards: never one that happens to be recorded
    here.

    Args:
        address: `host:port`, `ray://host:port`, `auto`, or None for this machine.
        cpus: logical CPUs of an own Ray; default: the cores of the machine.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    found = resolve(address) if address else None
    with _connected(found) if found else _started(cpus or available_cpus()):
        yield


QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A Ray that somebody else has started."""
    import ray

    try:
        with starting_ray():
            ray.init(address=address, **QUIET)
    except Exception as error:
        raise InputError(
            f"the Ray cluster at {address} cannot be used ({_first_line(error)})",
            remedy="Check the address, and RAY_AUTH_MODE=token if the cluster asks for a token.",
        ) from error
    with contextlib.nullcontext() if address.startswith(CLIENT) else _environment(address):
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _started(cpus: int) -> Iterator[None]:
    """A Ray of our own, whose processes have all ended when the block has."""
    import ray

    # Read when the node starts: at Ray's default of 15 the workers would give way to anything else on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # an actor of its own, and an address outside
    processes = RayProcesses()
    with (
        ray_folder(base_folder()) as folder,
        _environment(None),
        interrupts.on_signal(processes.freeze),
        # Runs where a signal ends the process: the folder's own `finally` may never do.
        interrupts.before_exit(lambda: _end(processes, folder)),
    ):
        try:
            try:
                with starting_ray():
                    ray.init(
                        address="local",
                        num_cpus=cpus,
                        include_dashboard=False,
                        object_store_memory=OBJECT_STORE_BYTES,
                        labels=PRIVATE_LABEL,
                        _temp_dir=folder,
                        **QUIET,
                    )
            except Exception as error:  # Ray raises a bare Exception where its processes do not answer in time
                raise RunFailed(_why_not_started(error, folder)) from error
            with _environment(ray.get_runtime_context().gcs_address):
                yield
        finally:
            if not interrupts.stopping():  # then they are frozen, and `_end` is the last thing to happen
                processes.look()
                ray.shutdown()
                processes.kill_seen()  # Ray's agents may live on for half a minute


def _end(processes: RayProcesses, folder: str) -> None:
    processes.kill()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(address: str | None) -> Iterator[None]:
    """RAY_ADDRESS set to `address`: parts of Ray prefer what it says to the Ray that they are part of."""
    before = os.environ.pop(ADDRESS_VARIABLE, None)
    if address is not None:
        os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        os.environ.pop(ADDRESS_VARIABLE, None)
        if before is not None:
            os.environ[ADDRESS_VARIABLE] = before


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _why_not_started(error: Exception, folder: str) -> str:
    """What Ray said, and the last thing that its processes complained of; only where neither is known, a guess."""
    complaint = ""
    for name in ("gcs_server", "raylet"):
        for path in Path(folder).glob(f"session_*/logs/{name}.*"):
            with contextlib.suppress(OSError):
                lines = path.read_text(errors="replace").splitlines()
                complaint = next((line for line in reversed(lines) if COMPLAINT.match(line)), complaint)
    text = f"Ray did not start on this machine: {_first_line(error)}"
    if complaint:
        return f"{text}. Its log says: {complaint.partition('] ')[2] or complaint}"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return text
    return f"{text}. The machine may be overloaded: try again, or name a cluster with --address"


def base_folder() -> Path:
    """Where the temporary folder of a Ray goes: the system's place for such, or another if its path is too long.

    Ray's sockets lie below the folder, and the path of a Unix socket has at most 107 bytes.

    Raises:
        RunFailed: none of the places that there are can be written to, or all have longer paths.
    """
    below = f"/{PREFIX}{'x' * 8}/session_{'x' * 26}_{os.getpid()}/sockets/plasma_store"
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~/.cache"), os.path.expanduser("~")]
    for place in places:
        if len(os.fsencode(place + below)) <= LONGEST_SOCKET and _takes_files(place):
            return Path(place)
    raise RunFailed(
        f"Ray needs a temporary folder whose path has at most {LONGEST_SOCKET - len(below)} bytes, and none of "
        f"{', '.join(dict.fromkeys(places))} is short enough and can be written to. Set TMPDIR to one that is"
    )


def _takes_files(place: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def available_cpus() -> int:
    """Cores that this process may use: its affinity, and a container's share of time (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


@dataclass(frozen=True)
class Placement:
    """A number of equal actors and what each takes."""

    workers: int
    cpus: float
    gpus: float

    def describe(self) -> str:
        """As in `2 x (1 CPU and 1 GPU)`."""
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.workers} x ({each})"


def plan_placement(
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
    *,
    nodes: list[dict[str, float]],
    autoscale: bool = False,
    options: tuple[str, str, str] = ("--workers", "--cpus-per-worker", "--gpus-per-worker"),
) -> Placement:
    """How many actors of which size, from the settings and from what the nodes have.

    Where the settings leave it open: one GPU each if there are GPUs, and its share of the CPUs for decoding; else
    one CPU each, and as many actors as fit.

    Args:
        workers, cpus, gpus: settings, None to choose.
        nodes: resources of each node, with the keys `CPU` and `GPU`.
        autoscale: the cluster starts nodes for actors that wait. Ray does not tell which it could start, so nothing is
            refused, and the number of workers has to be said.
        options: what the command calls `workers`, `cpus` and `gpus`, for messages.

    Raises:
        InputError: the plan can never be placed; the message shows the arithmetic.
    """
    if gpus is None:
        gpus = 1.0 if any(n.get("GPU", 0) >= 1 for n in nodes) else 0.0
    if cpus is None:
        # The share of the node that has least: every GPU is to get its worker.
        shares = [n.get("CPU", 0) // (n["GPU"] / gpus) for n in nodes if gpus and n.get("GPU", 0) >= gpus]
        cpus = max(1.0, min(8.0, *shares)) if shares else 1.0
    if autoscale:
        if workers is None:
            raise InputError("an autoscaling cluster does not tell how many workers fit", remedy=f"Give {options[0]}.")
        return Placement(workers, cpus, gpus)
    fits = sum(_fitting(node, cpus, gpus) for node in nodes)
    plan = Placement(workers if workers is not None else max(1, fits), cpus, gpus)
    if plan.workers > fits:
        have = " + ".join(f"({n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU)" for n in nodes) or "no node"
        raise InputError(
            f"{plan.describe()} cannot be placed: the cluster has {have}, room for {fits} such "
            f"worker{'' if fits == 1 else 's'}",
            remedy=f"Lower {options[0]}, {options[1]} or {options[2]}, add nodes, or say --autoscale where the cluster "
            "starts them.",
        )
    return plan


def _fitting(node: dict[str, float], cpus: float, gpus: float) -> int:
    limits = [int(node.get(name, 0) / amount + 1e-9) for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount]
    return min(limits) if limits else 1


def node_resources() -> list[dict[str, float]]:
    """Resources of each live node of the Ray that this process is connected to."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
