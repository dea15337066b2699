"""Which cluster an --address means, asked of real sockets and real processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from raymotion.batch import address, cluster
from raymotion.batch.address import require_answer, resolve
from raymotion.errors import InputError, RunFailed


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as held:  # bound, but not listening: nobody else can take it
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_dead_address_is_told_at_once(dead_port, scheme):
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"{scheme}127.0.0.1:{dead_port} \(--address\): connection refused"):
        resolve(f"{scheme}127.0.0.1:{dead_port}")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_accepts_and_does_not_answer_has_a_limit(silent_port, scheme):
    started = time.monotonic()
    with pytest.raises(InputError, match="answer"):
        require_answer(f"{scheme}127.0.0.1:{silent_port}", seconds=0.5)
    assert time.monotonic() - started < 5
    assert address.ANSWER_SECONDS < 19  # what the command line waits, of the 20 seconds that it may


@pytest.mark.parametrize("scheme, what", [("", "head"), ("ray://", "Ray Client server")])
def test_another_kind_of_server_is_told(scheme, what):
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(InputError, match=f"not a {what}"):
            require_answer(f"{scheme}127.0.0.1:{port}", seconds=10)
    finally:
        server.stop(None)


@pytest.mark.parametrize("given", ["somewhere", "host:", ":6379", "host:port", "host:0", "host:70000", "ray://host"])
def test_what_is_no_address(given):
    with pytest.raises(InputError, match="not the address of"):
        resolve(given)


def test_a_dashboard_is_no_cluster_to_connect_to():
    with pytest.raises(InputError, match=r"dashboard.*ray job submit"):
        resolve("http://127.0.0.1:8265")


def test_auto_takes_ray_address_and_says_so(monkeypatch, dead_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{dead_port}")
    with pytest.raises(InputError, match=rf"127.0.0.1:{dead_port} \(RAY_ADDRESS, which --address auto takes\)"):
        resolve("auto")


def test_local_is_a_ray_of_our_own():
    assert resolve("local") is None


@contextlib.contextmanager
def raylets(*options: str) -> Iterator[None]:
    """Processes that look like raylets on their command lines, which is where Ray looks."""
    code = "import time; time.sleep(60)"
    with contextlib.ExitStack() as stack:
        for option in options:
            command = ["/opt/ray/raylet", "-c", code, f"--gcs-address={option.split()[0]}", *option.split(" ", 1)[1:]]
            process = subprocess.Popen(command, executable=sys.executable)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


PRIVATE = '--labels={"raymotion": "private"}'


@pytest.fixture
def machine(monkeypatch):
    """No RAY_ADDRESS, no cluster that `ray start` recorded, and none of the Rays that run here anyway."""
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: None)
    there = set().union(*address._running())
    found = address._running
    monkeypatch.setattr(address, "_running", lambda: tuple(own - there for own in found()))
    return monkeypatch


def test_auto_does_not_find_the_private_ray_of_another_command(machine):
    with raylets(f"127.0.0.1:7001 {PRIVATE}"):
        assert address._running() == ({"127.0.0.1:7001"}, set())
        with pytest.raises(InputError, match=r"no Ray cluster.*private ones"):
            resolve("auto")


def test_auto_finds_the_one_cluster_beside_private_ones(machine):
    asked = []
    machine.setattr(address, "require_answer", lambda given, **_: asked.append(given))
    with raylets(f"127.0.0.1:7002 {PRIVATE}", "127.0.0.1:7003 --labels="):
        assert resolve("auto") == "127.0.0.1:7003" and asked == ["127.0.0.1:7003"]


def test_auto_does_not_choose_among_several(machine):
    with (
        raylets("127.0.0.1:7004", "127.0.0.1:7005"),
        pytest.raises(InputError, match=r"several.*127.0.0.1:7004, 127.0.0.1:7005"),
    ):
        resolve("auto")


def test_auto_without_any_cluster(machine):
    with pytest.raises(InputError, match=r"no Ray cluster.*`ray start --head`"):
        resolve("auto")


def test_auto_passes_over_a_recorded_cluster_that_is_dead(machine, dead_port):
    from ray._private import services

    machine.setattr(services, "find_bootstrap_address", lambda temp_dir: f"127.0.0.1:{dead_port}")
    with pytest.raises(InputError, match=r"the last `ray start` on this machine\): connection refused"):
        resolve("auto")
    answered = address.require_answer
    machine.setattr(
        address, "require_answer", lambda given, **more: None if ":7006" in given else answered(given, **more)
    )
    with raylets("127.0.0.1:7006"):
        assert resolve("auto") == "127.0.0.1:7006"


# --- the temporary folder of a Ray of our own


@pytest.mark.parametrize("length", range(12, 60, 3))
def test_the_longest_socket_below_the_temporary_folder_fits(tmp_path, monkeypatch, length):
    from ray._private.utils import validate_socket_filepath

    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        place = Path(short + "/" + "x" * max(0, length - len(short) - 1)).resolve()
        place.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        chosen = cluster.base_folder()
        session = f"session_2026-01-01_00-00-00_000000_{cluster.os.getpid()}"
        validate_socket_filepath(f"{chosen}/raymotion-abcdefgh/{session}/sockets/plasma_store")  # Ray's own check
        assert chosen == place or length > 18  # the user's own choice, wherever it can be kept


def test_a_place_that_can_not_be_written_to_is_passed_over(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    assert str(cluster.base_folder()) != "/proc"


def test_no_place_at_all_is_told(monkeypatch):
    monkeypatch.setattr(cluster, "LONGEST_SOCKET", 60)
    with pytest.raises(RunFailed, match="Set TMPDIR"):
        cluster.base_folder()


def test_a_ray_that_does_not_start_is_told_with_its_own_reason(tmp_path):
    known = OSError(28, "No space left on device")
    assert "overloaded" not in cluster._why_not_started(known, str(tmp_path))
    assert "overloaded" in cluster._why_not_started(Exception("The current node timed out"), str(tmp_path))
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text(
        "[2026-01-01 00:00:00,000 I 1 1] main.cc:1: starting\n"
        "[2026-01-01 00:00:00,000 C 1 1] plasma.cc:2:  Check failed: shm_open: No space left on device\n*** stack\n"
    )
    told = cluster._why_not_started(Exception("The current node timed out"), str(tmp_path))
    assert told.endswith("Its log says: plasma.cc:2:  Check failed: shm_open: No space left on device")


def test_ray_address_stands_aside_for_a_ray_of_our_own(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with cluster._environment(None):
        assert "RAY_ADDRESS" not in cluster.os.environ
        with cluster._environment("10.0.0.1:6379"):
            assert cluster.os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert cluster.os.environ["RAY_ADDRESS"] == "127.0.0.1:1"
