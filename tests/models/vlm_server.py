"""A small OpenAI-compatible server on loopback: it decodes the picture it is sent, and answers from its colours."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

MODEL = "colours-1"
LABELS = ("red", "green", "blue")
# Side of the grey picture that clients try the server with.
TRIAL_SIDE = 64


def shares(picture: Image.Image) -> dict[str, float]:
    """What the server answers: the mean of each colour, from 0 to 1."""
    mean = np.asarray(picture.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)) / 255
    return {label: round(float(value), 4) for label, value in zip(LABELS, mean, strict=True)}


@dataclass
class Asked:
    """One request: its JSON, its picture, its headers, and when it came."""

    body: dict[str, Any]
    picture: Image.Image
    headers: dict[str, str]
    at: float

    @property
    def is_trial(self) -> bool:
        """Whether it is about the grey picture."""
        return self.picture.size == (TRIAL_SIDE, TRIAL_SIDE) and len(np.unique(np.asarray(self.picture))) == 1


# What a misbehaviour returns: a status, headers, a body; None to answer as usual.
Reply = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class ColourServer:
    """The server's state. `misbehave` is called for every request and may return another reply, or wait."""

    address: str = ""
    key: str | None = None
    misbehave: Callable[[Asked], Reply | None] = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> list[Asked]:
        """The requests that are no trials."""
        return [own for own in self.asked if not own.is_trial]

    def colours(self) -> Counter[str]:
        """How often each picture was asked about, by its strongest colour and its strength."""
        return Counter(str(shares(own.picture)) for own in self.rows)


def completion(text: str | None, *, ended: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion with an answer, and with the tokens that were used: 100, and one for each 4 characters."""
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": MODEL,
        "choices": [
            {"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": len(text or "") // 4, "total_tokens": 0},
    }  # fmt: skip


def refused(status: int, message: str, **headers: str) -> Reply:
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
        finally:
            with state.lock:
                state.open_now -= 1
        data = json.dumps(reply).encode()
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
            return refused(404, f"Not Found: {self.path}")
        if state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}":
            return refused(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if body["model"] != MODEL:
            return refused(404, f"The model `{body['model']}` does not exist.")
        (message,) = body["messages"]
        (url,) = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
        head, _, data = url.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        asked = Asked(body, picture, dict(self.headers.items()), time.monotonic())
        with state.lock:
            state.asked.append(asked)
        other = state.misbehave(asked)
        return other if other is not None else (200, {}, completion(json.dumps(shares(picture))))


@contextmanager
def serving() -> Iterator[ColourServer]:
    """Runs the server for the duration of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    state = ColourServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
