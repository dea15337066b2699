"""Stages that ask a service about pictures, and what that cost."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from raymotion.errors import RunFailed
from raymotion.models.inputs.answers import Service, Unanswered
from raymotion.pipeline.stages import MESSAGE_LIMIT, Failure, Item

QUALITY = 90  # of the JPEG
# Number of pictures without a usable answer, and none with one, after which no more are paid for.
MOST_WITHOUT_ANSWER = 16


class EncodePictures:
    """Encodes pictures as JPEG for a service, with at most `size` pixels on the longer side."""

    name = "encode"
    whole_shard = False

    def __init__(self, size: int) -> None:
        self.size = size

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.pixels is not None:
                picture = Image.fromarray(item.pixels)
                picture.thumbnail((self.size, self.size), Image.Resampling.BICUBIC)
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=QUALITY)
                item.question = buffer.getvalue()


class AskService:
    """Asks a service about the encoded pictures of a shard, several at a time.

    Attributes:
        tally: counts of the service.
    """

    name = "ask"
    whole_shard = True

    def __init__(self, service: Service) -> None:
        self.service, self.tally = service, service.tally
        self.good = self.bad = 0

    def setup(self, threads: int, device: str) -> None:
        """Connects to the service."""
        self.service.open()

    def process(self, items: Sequence[Item]) -> None:
        """Stores answers on items; those without one fail.

        Raises:
            InputError, RunFailed: the service can answer nothing, or gave no usable answer to the first pictures.
        """
        asked = [item for item in items if item.question is not None and item.answer is None]
        todo: SimpleQueue[Item] = SimpleQueue()
        done: SimpleQueue[tuple[Item, np.ndarray | Exception]] = SimpleQueue()
        for item in asked:
            todo.put(item)
        # Daemons, because a pool's threads would keep a command that has failed until the last of them is answered.
        for _ in range(min(self.service.concurrency, len(asked))):
            threading.Thread(target=_ask_all, args=(self.service, todo, done), daemon=True).start()
        try:
            for _ in asked:
                item, answer = done.get()
                if isinstance(answer, Unanswered):
                    self._fail(item, answer)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    item.answer, item.question = answer, None
                    self.good += 1
        finally:
            with contextlib.suppress(Empty):
                while True:
                    todo.get_nowait()

    def _fail(self, item: Item, error: Unanswered) -> None:
        item.failure = Failure(self.name, error.reason, type(error).__name__, str(error)[:MESSAGE_LIMIT])
        self.bad += 1
        if not self.good and self.bad >= MOST_WITHOUT_ANSWER:
            raise RunFailed(
                f"there is no usable answer about any of the first {self.bad} pictures; the last one, {error.reason}: "
                f"{error}. Try another model or prompt (`raymotion wrap`)"
            )


def _ask_all(service: Service, todo: SimpleQueue[Item], done: SimpleQueue[tuple[Item, np.ndarray | Exception]]) -> None:
    """Asks about items until none is left; runs in several threads."""
    with contextlib.suppress(Empty):
        while True:
            item = todo.get_nowait()
            assert item.question is not None
            try:
                done.put((item, service.ask(item.question)))
            except Exception as error:
                done.put((item, error))


def spent(tally: Mapping[str, int], service: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what a service was asked and what that cost, from the counts of committed shards; None if nothing.

    Args:
        service: its description in the record of the job.
    """
    if not tally.get("requests"):
        return None
    names = ("requests", "retries", "answers", "prompt_tokens", "completion_tokens")
    found: dict[str, Any] = {name: tally.get(name, 0) for name in names}
    found["answers_by_format"] = {key[3:]: count for key, count in sorted(tally.items()) if key.startswith("as ")}
    found["answers_without_usage"] = tally.get("without usage", 0)
    prices = [(service.get(f"{part}_price"), found[f"{part}_tokens"]) for part in ("prompt", "completion")]
    if any(price is not None for price, _ in prices):
        found["cost"] = round(sum((price or 0) * tokens for price, tokens in prices) / 1e6, 6)
    return found


def spent_text(usage: Mapping[str, Any]) -> str:
    """Returns `spent` as a phrase."""
    cost = f", cost {usage['cost']:,.4f}" if "cost" in usage else ""
    unknown = usage["answers_without_usage"]
    more = f"; the server counted no tokens for {unknown:,} answers" if unknown else ""
    return (
        f"{usage['requests']:,} requests ({usage['retries']:,} of them retries), {usage['prompt_tokens']:,} prompt + "
        f"{usage['completion_tokens']:,} completion tokens{cost}{more}"
    )


def spent_notices(usage: Mapping[str, Any], wanted: str | None) -> list[str]:
    """Returns notices about answers that the service would not give in the wanted format."""
    return [
        f"The server refused response_format {wanted}: {count:,} answers were asked for as {name}."
        for name, count in usage["answers_by_format"].items()
        if name != wanted
    ]
