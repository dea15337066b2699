"""An OpenAI-compatible server on loopback, which decodes the pictures it is sent and answers from their colours."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.vocabulary import Vocabulary

MODEL = "colours-1"
# Side of the grey picture that clients try the server with.
TRIAL_SIDE = 64
# What a misbehaviour returns: status, headers, body.
Reply = tuple[int, dict[str, str], Any]


def colour_of(row: int) -> tuple[int, int, int]:
    """The colour of the picture of a row: red tells which row it is."""
    return 20 * row, 255 - 20 * row, (70 * row) % 256


@dataclass
class Asked:
    """One request: its JSON, its picture and headers, when it came, and the row of the picture; None for a trial."""

    body: dict[str, Any]
    picture: Image.Image
    headers: dict[str, str]
    at: float

    @property
    def shares(self) -> dict[str, float]:
        """The mean of each colour, from 0 to 1: what the server answers."""
        mean = np.asarray(self.picture.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)) / 255
        return {label: round(float(value), 4) for label, value in zip(("red", "green", "blue"), mean, strict=True)}

    @property
    def row(self) -> int | None:
        return None if self.picture.size == (TRIAL_SIDE, TRIAL_SIDE) else round(self.shares["red"] * 255 / 20)


@dataclass
class ColourServer:
    """The server's state.

    `misbehave` is called for every request; it may wait, return another reply, or raise a ConnectionResetError.
    """

    address: str = ""
    model: str = MODEL
    key: str | None = None
    misbehave: Callable[[Asked], Reply | None] = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(self) -> list[int]:
        """The rows that were asked about, in order, as often as they were."""
        return [own.row for own in self.asked if own.row is not None]

    def say(self, text: str | None, *, ended: str = "stop", **message: Any) -> Reply:
        """An answer of the model; 100 tokens were read, and one written for each 4 characters."""
        usage = {"prompt_tokens": 100, "completion_tokens": len(text or "") // 4, "total_tokens": 0}
        answer = {"role": "assistant", "content": text, **message}
        choices = [{"index": 0, "finish_reason": ended, "message": answer}]
        return 200, {}, {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices,
                         "usage": usage}  # fmt: skip

    def refuse(self, status: int, message: str = "no", **headers: str) -> Reply:
        """An error as OpenAI and vLLM write it."""
        return status, headers, {"error": {"message": message, "type": "error", "code": status}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        state: ColourServer = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.open_now += 1
            state.open_most = max(state.open_most, state.open_now)
        try:
            status, headers, reply = self._reply(state, body)
        except ConnectionResetError:  # it hangs up
            self.close_connection = True
            return
        finally:
            with state.lock:
                state.open_now -= 1
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # the client has given up
            self.close_connection = True

    def _reply(self, state: ColourServer, body: dict[str, Any]) -> Reply:
        if self.path != "/v1/chat/completions":
            return state.refuse(404, f"Not Found: {self.path}")
        if state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}":
            return state.refuse(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if body["model"] != state.model:
            return state.refuse(404, f"The model `{body['model']}` does not exist.")
        (message,) = body["messages"]
        (url,) = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
        head, _, data = url.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        asked = Asked(body, picture, {name.lower(): value for name, value in self.headers.items()}, time.monotonic())
        with state.lock:
            state.asked.append(asked)
        return state.misbehave(asked) or state.say(json.dumps(asked.shares))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ColourServer]:
    """A running server."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    state = ColourServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    http.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A table of 12 pictures of 300 x 200 pixels, each of a colour of its own, with labels and splits."""
    colours = Vocabulary("colours", ("blue", "red", "green"))
    rows = []
    for row in range(12):
        path = tmp_path / "pictures" / f"{row:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 200), colour_of(row)).save(path)
        rows.append({
            "sample_id": f"{row:02d}", "group_id": f"{row:02d}", "source": "t", "image_uri": str(path),
            "labels": ["red" if row > 6 else "green"], "split": ("train", "val", "test")[row % 3],
        })  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, colours))
    return tmp_path / "s.parquet"


@pytest.fixture
def wrap(server: ColourServer, tmp_path: Path, runner: Callable[..., Any]) -> Callable[..., Path]:
    """`wrap(*options, out="vlm")` -> checkpoint of the server's model over the vocabulary blue, red, green."""
    (tmp_path / "colours.txt").write_text("blue\nred\ngreen\n")

    def make(*options: object, out: str = "vlm", model: str = MODEL) -> Path:
        done = runner(
            "wrap", "vlm", "--endpoint", server.address, "--model", model, "--vocabulary", tmp_path / "colours.txt",
            *options, "--out", tmp_path / out,
        )  # fmt: skip
        assert done.code == 0, done.err
        return tmp_path / out

    return make
