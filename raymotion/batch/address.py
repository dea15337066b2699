"""Resolves `--address` to a Ray cluster and checks that it responds.

Done before `ray.init`, which keeps trying a dead address for a quarter of an hour, and for which `auto` means any Ray
on the machine, even the private one of another command, which ends with that command.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from raymotion.errors import InputError

ANSWER_SECONDS = 12.0
ADDRESS_VARIABLE = "RAY_ADDRESS"
# Node label of a Ray that raymotion starts for one command, visible on the raylet's command line.
PRIVATE_LABEL = {"raymotion": "private"}
CLIENT, DASHBOARD = "ray://", ("http://", "https://")
REMEDY = "Check the address, or leave --address out to start Ray on this machine."


def resolve(address: str) -> str | None:
    """Resolves an address and checks that a cluster responds there.

    Args:
        address: as the user gave it; `auto` is RAY_ADDRESS if set, else the cluster on this machine.

    Returns:
        `host:port` or `ray://host:port`; None for a private Ray (`local`).

    Raises:
        InputError: nothing responds within about 15 seconds, it is not Ray, or `auto` finds no or several clusters.
    """
    given, origin = address.strip(), "--address"
    if given == "auto":
        given = os.environ.get(ADDRESS_VARIABLE, "").strip()
        origin = f"{ADDRESS_VARIABLE}, which --address auto takes"
        if given in ("", "auto"):
            return _cluster_of_this_machine()
    if given == "local":
        return None
    require_answer(given, origin=origin)
    return given


def require_answer(address: str, *, origin: str = "--address", seconds: float = ANSWER_SECONDS) -> None:
    """Raises an `InputError` unless Ray responds at `address` within `seconds`."""
    if address.startswith(DASHBOARD):
        raise InputError(
            f"{address} ({origin}) is the address of a dashboard, which only takes submitted jobs",
            remedy="Use `ray job submit`, or give host:port or ray://host:port.",
        )
    host, _, port = address.removeprefix(CLIENT).partition("?")[0].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"{address!r} ({origin}) is not the address of a Ray cluster",
            remedy="Give host:port, ray://host:port or auto.",
        )
    until = time.monotonic() + seconds
    reason = _within(seconds, lambda: _refused(host.strip("[]"), int(port), seconds))
    if reason is None:
        ask = _is_client_server if address.startswith(CLIENT) else _is_head
        left = max(1.0, until - time.monotonic())
        reason = _within(left + 1, lambda: ask(f"{host}:{port}", left))
    if reason is not None:
        raise InputError(f"no Ray cluster answers at {address} ({origin}): {reason}", remedy=REMEDY)


def _within(seconds: float, ask: Callable[[], str | None]) -> str | None:
    """Returns the result of `ask` with a time limit, which name resolution does not have."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else f"no answer in {seconds:.0f} s"


def _refused(host: str, port: int, seconds: float) -> str | None:
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except TimeoutError:
        return f"no answer in {seconds:.0f} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _is_head(address: str, seconds: float) -> str | None:
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with _channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        return _why_not(lambda: stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=seconds), "head")


def _is_client_server(address: str, seconds: float) -> str | None:
    from ray.core.generated import ray_client_pb2, ray_client_pb2_grpc

    request = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
    with _channel(address) as channel:
        stub = ray_client_pb2_grpc.RayletDriverStub(channel)
        return _why_not(lambda: stub.ClusterInfo(request, timeout=seconds), "Ray Client server (ray://)")


@contextlib.contextmanager
def _channel(address: str) -> Iterator[object]:
    """Opens a gRPC channel with Ray's settings (TLS, and the cluster's token)."""
    from ray._private.grpc_utils import init_grpc_channel

    channel = init_grpc_channel(address)
    try:
        yield channel
    finally:
        channel.close()


def _why_not(call: Callable[[], object], what: str) -> str | None:
    import grpc

    try:
        call()
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return f"what listens there is not a {what}"
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return "something listens there, but does not answer as Ray does"
        # It responds as Ray. Other errors, such as a missing token, are left to `ray.init`.
    return None


def _cluster_of_this_machine() -> str:
    """Returns the address of the cluster recorded by the last `ray start` on this machine, else of the running one."""
    from ray._private import services

    private, running = _running()
    recorded = services.find_bootstrap_address(None)
    if recorded and recorded not in private:
        try:
            require_answer(recorded, origin="the last `ray start` on this machine")
        except InputError:
            if not running - {recorded}:
                raise
        else:
            return recorded
    if len(running) == 1:
        (address,) = running
        require_answer(address, origin="--address auto")
        return address
    if running:
        raise InputError(
            f"several Ray clusters run on this machine ({', '.join(sorted(running))})",
            remedy="Give one of them with --address.",
        )
    raise InputError(
        "no Ray cluster runs on this machine"
        + (" apart from the private ones of other raymotion commands, which end when those do" if private else ""),
        remedy="Start one with `ray start --head`, or leave --address out.",
    )


def _running() -> tuple[set[str], set[str]]:
    """Returns the addresses of the clusters with raylets on this machine: private ones of raymotion, and others."""
    import psutil

    private: set[str] = set()
    others: set[str] = set()
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if not command or os.path.basename(command[0]) != "raylet":
            continue
        options = dict(argument.lstrip("-").partition("=")[::2] for argument in command[1:])
        if address := options.get("gcs-address"):
            label = options.get("labels", "")
            mine = all(name in label and value in label for name, value in PRIVATE_LABEL.items())
            (private if mine else others).add(address)
    return private, others
