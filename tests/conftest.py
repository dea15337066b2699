"""What all tests share: one real Ray instance, one real S3 server, the real data where it is at hand, the command."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# Read when PyTorch and the BLAS libraries are imported: more threads, beside Ray's workers, only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test may reach a model hub; whatever would, fails at once instead of after a timeout.
os.environ["HF_HUB_OFFLINE"] = "1"

# The first example pays for imports, and shared machines stall: no deadline. Derandomized: a red run can be run again.
settings.register_profile(
    "raymotion", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("raymotion")


@pytest.fixture(scope="session", autouse=True)
def _own_cache_of_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the session's own for what text towers say; else only the first run on a machine would run them.

    All else in the user's cache is linked: making it again, such as the bundled weights, takes long. It is named by
    XDG_CACHE_HOME, so that commands and Ray's workers have it too.
    """
    from raymotion.folders.local_copy import default_cache

    theirs = Path(default_cache())
    own = tmp_path_factory.mktemp("own-cache")
    (own / theirs.name).mkdir()
    for source, place in ((theirs.parent, own), (theirs, own / theirs.name)):
        for path in source.iterdir() if source.is_dir() else ():
            if path != theirs and path != theirs / "texts":
                (place / path.name).symlink_to(path.absolute())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(own))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real COCO pictures and the Socratis table beside the checkout; skips where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server on loopback, which the AWS variables of this process, and of its children, point to."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, ",".join(part for part in (os.environ.get(name), "127.0.0.1") if part))
        yield endpoint
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """Address of a fresh, empty bucket: `s3://test-...`."""
    from raymotion.stores.s3 import filesystem

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    filesystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_local(s3_server: str) -> Iterator[Any]:
    """The `ray` module, connected to one real local Ray instance of 4 CPU slots that all tests share."""
    # Workers inherit these from the raylet, so they have to stand before it starts: the AWS variables too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if p))
        import ray

        # Short, because a Unix socket's path may have 107 characters.
        folder = tempfile.mkdtemp(prefix="rm", dir="/tmp")
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=300 * 1024**2,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and what it wrote to the two streams."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def runner() -> Callable[..., Outcome]:
    """`runner("data", "prepare", ...)`: the `raymotion` command in this process, with its error lines and exit code."""
    from raymotion.cli.main import raymotion

    def run(*arguments: object) -> Outcome:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                raymotion.main([str(argument) for argument in arguments], prog_name="raymotion")
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def run_command() -> Callable[..., Outcome]:
    """`run_command("label", ...)`: the installed `raymotion` script as a process of its own.

    Keywords go to `subprocess.run`; `env` is laid over this process's environment.
    """
    script = Path(sys.executable).with_name("raymotion")

    def run(*arguments: object, env: dict[str, str] | None = None, timeout: float = 110, **extra: Any) -> Outcome:
        done = subprocess.run(
            [str(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            **extra,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def _proxy(s3_server: str) -> Iterator[Any]:
    name = "s3_requests"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    made = sys.modules[name].Proxy(s3_server)
    yield made
    made.close()


@pytest.fixture
def store_proxy(_proxy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy in front of the S3 server, to which s3:// addresses lead: it counts, delays and spoils requests.

    It is `Proxy` of benchmarks/s3_requests.py. Stores are waited for 5 s, with short pauses.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", _proxy.endpoint)
    monkeypatch.setenv("RAYMOTION_STORE_PATIENCE", "5")
    monkeypatch.setattr("raymotion.stores.access.FIRST_PAUSE", 0.01)
    _proxy.reset()
    return _proxy


@pytest.fixture
def stop_command() -> Callable[..., None]:
    """`stop_command(arguments, when, number, group=True)`: sends the command a signal as soon as `when()`.

    Asserts that it and its Ray end within ten seconds, with one line and the code of the signal.
    """
    import psutil

    from raymotion.interrupts import LINE, SIGNALS

    def defaults() -> None:  # a shell's background job ignores SIGINT, and so would its children
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def stop(arguments: Sequence[object], when: Callable[[], bool], number: int, *, group: bool) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "raymotion.cli.main", *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=defaults,
        )  # fmt: skip
        try:
            give_up = time.monotonic() + 240
            while not when():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < give_up
                time.sleep(0.02)
            children = psutil.Process(process.pid).children(recursive=True)
            started = time.monotonic()
            (os.killpg if group else os.kill)(process.pid, number)  # a terminal signals the whole group
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - started < 10
            _, alive = psutil.wait_procs(children, timeout=10)
            assert not alive, "Ray's processes live on"
            assert (process.returncode, err.splitlines()) == (128 + number, [LINE])
        finally:
            process.kill()
            process.wait()

    return stop


@pytest.fixture
def dead_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`s3://` addresses lead to a port where nobody listens."""
    with socket.socket() as held:  # bound, but not listening: nobody else can take the port
        held.bind(("127.0.0.1", 0))
        yield from _store_at(f"http://127.0.0.1:{held.getsockname()[1]}", monkeypatch)


@pytest.fixture
def refusing_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`s3://` addresses lead to a server that answers every request with 403 Access Denied."""
    body = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield from _store_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()


def _store_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("RAYMOTION_STORE_PATIENCE", "0")
    yield
    monkeypatch.undo()


def _rebind(folder: Path) -> None:
    """Makes edited files of a checkpoint pass for those that were written with its weights, as a forger would."""
    from safetensors.torch import load_file, save_file

    from raymotion.models.checkpoint_files import MARK, binding

    config, training = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "training"))
    files = {name: (folder / name).read_bytes() for name in config.get("files", ())}
    mark = {MARK: json.dumps(binding(config, files, training))}
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", mark)


@pytest.fixture
def rebind() -> Callable[[Path], None]:
    return _rebind
