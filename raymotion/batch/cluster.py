"""Connects to Ray or starts it, and plans how many actors fit."""

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

# The object store holds shard numbers, one-row records and, during training, weights, but never pixels.
OBJECT_STORE_BYTES = 256 * 1024**2
LONGEST_SOCKET = 107 if sys.platform == "linux" else 103  # bytes of the path of a Unix socket
COMPLAINT = re.compile(r"\[\S+ \S+ [EFC] ")  # a line of Ray's logs: [date time level process thread] file:line: text


@contextlib.contextmanager
def connect(address: str | None, *, cpus: int | None = None) -> Iterator[None]:
    """Connects to Ray, or starts it, for the duration of the block.

    An existing connection of this process is used and left open. Without an address, a private Ray is started on this
    machine, in its own temporary folder, and stopped afterwards; a Ray recorded on this machine is never used then.

    Args:
        address: `host:port`, `ray://host:port`, `auto`, or None for a private Ray.
        cpus: logical CPUs of a private Ray; default: the available cores.
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
    """Connects to an existing cluster for the duration of the block."""
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
    """Starts a private Ray for the duration of the block; all its processes have ended afterwards."""
    import ray

    # Read when the node starts. With Ray's default of 15 the workers would yield to any other process on the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # would start an actor and contact an external address
    processes = RayProcesses()
    with (
        ray_folder(base_folder()) as folder,
        _environment(None),
        interrupts.on_signal(processes.freeze),
        # Runs if a signal ends the process, when the `finally` of `ray_folder` may not.
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
            except Exception as error:  # Ray raises a bare Exception if its processes do not respond in time
                raise RunFailed(_why_not_started(error, folder)) from error
            with _environment(ray.get_runtime_context().gcs_address):
                yield
        finally:
            if not interrupts.stopping():  # otherwise they are suspended, and `_end` kills them
                processes.look()
                ray.shutdown()
                processes.kill_seen()  # Ray's agents may live on for half a minute


def _end(processes: RayProcesses, folder: str) -> None:
    processes.kill()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(address: str | None) -> Iterator[None]:
    """Sets RAY_ADDRESS for the block, since parts of Ray prefer it to the cluster that they belong to."""
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
    """Returns Ray's message with the last error in its logs or, if there is none, possibly a guess at the cause."""
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
    """Returns the parent of Ray's temporary folder: the system's temporary folder, or another if its path is too long.

    Ray's sockets are below the folder, and the path of a Unix socket is limited to `LONGEST_SOCKET` bytes.

    Raises:
        RunFailed: every candidate has too long a path or cannot be written to.
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
    """Returns the number of cores that this process may use, by its affinity and the container's quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


@dataclass(frozen=True)
class Placement:
    """A number of identical actors and the resources of each."""

    workers: int
    cpus: float
    gpus: float

    def describe(self) -> str:
        """Formats the placement, as in `2 x (1 CPU and 1 GPU)`."""
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
    """Chooses the number and size of actors from the settings and the resources of the nodes.

    By default each actor has one GPU, if there are any, with its share of the CPUs for decoding, else one CPU; and
    there are as many actors as fit.

    Args:
        workers, cpus, gpus: settings; None: choose.
        nodes: resources of each node, with the keys `CPU` and `GPU`.
        autoscale: the cluster starts nodes for pending actors. Ray does not report which it could start, so no plan is
            refused, and `workers` is required.
        options: the command's names of `workers`, `cpus` and `gpus`, for messages.

    Raises:
        InputError: the plan cannot be placed; the message shows the calculation.
    """
    if gpus is None:
        gpus = 1.0 if any(n.get("GPU", 0) >= 1 for n in nodes) else 0.0
    if cpus is None:
        # The smallest share of any node, so that every GPU gets its worker.
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
    """Returns the resources of each live node of the connected cluster."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
