"""Asks a model behind an OpenAI-compatible endpoint about pictures.

The client is the `openai` package: its retries, their pauses and Retry-After are those that such servers are made for.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raymotion.errors import InputError, RunFailed
from raymotion.models.inputs.answers import Service, Unanswered
from raymotion.models.vlm.answer import read_answer, start_of
from raymotion.models.vlm.prompt import fill, schema_of
from raymotion.models.vlm.recipe import Access, Format, VlmConfig

SEED = 0
FORMATS: tuple[Format, ...] = ("json_schema", "json_object", "text")
# Side in pixels of the grey picture that an endpoint is tried with, and the tokens of its answer.
TRIAL_SIDE, TRIAL_TOKENS = 64, 16
# Sent where no key is needed: the client insists on one.
NO_KEY = "EMPTY"


class Endpoint(Service):
    """A model behind an endpoint.

    Args:
        labels: of the vocabulary, in order.

    Attributes:
        tally: HTTP requests, those of them that were retries, answers, answers without a count of tokens, tokens, and
            the answers by response format.
    """

    def __init__(self, config: VlmConfig, access: Access, labels: Sequence[str]) -> None:
        if importlib.util.find_spec("openai") is None:
            raise InputError("the package openai is not installed", remedy="pip install 'raymotion[vlm]'")
        self.config, self.access, self.labels = config, access, tuple(labels)
        self.concurrency = access.concurrency
        self.tally: Counter[str] = Counter()

    def describe(self) -> dict[str, Any]:
        own = self.access
        return {
            "model": self.config.served_model,
            "endpoint": own.endpoint,
            "response_format": self.config.response_format,
            "prompt_price": own.prompt_price,
            "completion_price": own.completion_price,
        }

    def open(self) -> None:
        import openai

        own = self.access
        self.key = _key(own.api_key_env)
        self.lock = threading.Lock()
        self.gap = 60 / own.requests_per_minute if own.requests_per_minute else 0.0
        self.free_at = 0.0
        self.client = openai.OpenAI(
            base_url=own.endpoint,
            api_key=self.key or NO_KEY,
            timeout=own.timeout,
            max_retries=own.retries,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._before_request]}),
        )
        self.prompt = fill(self.config.prompt, self.labels)
        self.format = self._accepted_format()

    def ask(self, picture: bytes) -> np.ndarray:
        text = self._answer(picture, self.format, self.config.max_tokens)
        return read_answer(text, self.labels)

    def _accepted_format(self) -> Format:
        """Tries the endpoint with a grey picture: address, key, model, pictures and response format at once."""
        *others, last = FORMATS[FORMATS.index(self.config.response_format) :]
        for name in others:
            try:
                self._try(name)
                return name
            except Unanswered:
                pass  # if it is not for the format, the last one is refused too
        try:
            self._try(last)
        except Unanswered as error:
            raise InputError(
                f"{self._place} refuses a question about a picture ({error})",
                remedy="Serve a model that reads pictures, with room for prompt, picture and --max-tokens.",
            ) from error
        return last

    def _try(self, name: Format) -> None:
        try:
            self._answer(_grey_picture(), name, TRIAL_TOKENS, trial=True)
        except Unanswered as error:
            if error.reason == "request_rejected":
                raise

    def _answer(
        self, picture: bytes, name: Format, longest: int, *, trial: bool = False, retries: int | None = None
    ) -> str:
        """Asks, with retries; returns the text of a complete answer.

        Args:
            trial: whether the picture is one that every working endpoint can answer about.

        Raises:
            Unanswered, InputError, RunFailed: see `Service.ask`.
        """
        import openai

        client = self.client if retries is None else self.client.with_options(max_retries=retries)
        try:
            reply = client.chat.completions.create(**self._question(picture, name, longest))
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"{self._place} refuses the API key ({self._told(error)})",
                remedy=f"Set {self.access.api_key_env} to a valid one."
                if self.access.api_key_env
                else "Name the environment variable that holds one: `raymotion wrap vlm --api-key-env NAME ...`.",
            ) from error
        except openai.NotFoundError as error:
            raise InputError(
                f"{self._place} is not there ({self._told(error)})",
                remedy="Check --model and --endpoint of `raymotion wrap vlm`; an endpoint mostly ends in /v1.",
            ) from error
        except openai.RateLimitError as error:
            raise self._failed(f"still limits the rate after {self.access.retries} retries", error) from error
        except (openai.InternalServerError, openai.APIConnectionError) as error:
            late, lost = isinstance(error, openai.APITimeoutError), isinstance(error, openai.APIConnectionError)
            told = f"no answer within {self.access.timeout:g} s" if late else self._told(error)
            # It is the picture's fault if another one is answered now.
            if not trial and self._answers_now():
                raise Unanswered("server_timeout" if late else "server_error", told) from error
            what = "does not answer in time" if late else "cannot be reached" if lost else "fails"
            raise self._failed(what, error) from error
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise Unanswered("request_rejected", f"the server rejects the request: {self._told(error)}") from error
            raise self._failed(f"answers with status {error.status_code}", error) from error
        except (openai.OpenAIError, ValueError) as error:  # a ValueError: JSON that is none
            raise self._failed("does not answer as an OpenAI-compatible server", error) from error
        return self._text_of(reply, name)

    def _question(self, picture: bytes, name: Format, longest: int) -> dict[str, Any]:
        url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        schema = {"name": "emotions", "strict": True, "schema": schema_of(self.labels)}
        constraint: dict[Format, dict[str, Any]] = {
            "json_schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
            "json_object": {"response_format": {"type": "json_object"}},
            "text": {},
        }
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": url}}]
        return {
            "model": self.config.served_model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": SEED,
            "max_tokens": longest,
            **constraint[name],
        }

    def _text_of(self, reply: Any, name: Format) -> str:
        usage, choices = getattr(reply, "usage", None), getattr(reply, "choices", None)
        if not isinstance(choices, list):
            raise RunFailed(
                f"{self._place} does not answer as an OpenAI-compatible server: {start_of(str(reply), 100)}. "
                "Check --endpoint of `raymotion wrap vlm`"
            )
        with self.lock:
            self.tally.update({"answers": 1, f"as {name}": 1, "without usage": int(usage is None)})
            for own in ("prompt_tokens", "completion_tokens"):
                count = getattr(usage, own, None)
                self.tally[own] += count if isinstance(count, int) else 0
        message = getattr(choices[0], "message", None) if choices else None
        text, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
        text = text if isinstance(text, str) else ""
        ended = getattr(choices[0], "finish_reason", None) if choices else None
        if refusal or ended == "content_filter":
            raise Unanswered("refusal", f"the model refuses: {start_of(str(refusal or text or ended))}")
        if ended == "length":
            raise Unanswered("answer_cut_off", f"the answer is cut off at max_tokens: {start_of(text)}")
        if not text.strip():
            raise Unanswered("answer_empty", "the answer is empty")
        return text

    def _before_request(self, request: Any) -> None:
        """Counts a request, retries included, and waits until the rate allows it."""
        with self.lock:
            self.tally["requests"] += 1
            self.tally["retries"] += request.headers.get("x-stainless-retry-count", "0") != "0"
            now = time.monotonic()
            start = max(now, self.free_at)
            self.free_at = start + self.gap
        time.sleep(start - now)

    def _answers_now(self) -> bool:
        """Returns whether the endpoint answers about another picture, asked once."""
        try:
            self._answer(_grey_picture(), self.format, TRIAL_TOKENS, trial=True, retries=0)
        except Unanswered:
            return True
        except (InputError, RunFailed):
            return False
        return True

    @property
    def _place(self) -> str:
        return f"the model {self.config.served_model} at {self.access.endpoint}"

    def _failed(self, what: str, error: Exception) -> RunFailed:
        return RunFailed(f"{self._place} {what} ({self._told(error)}). The same command goes on from here")

    def _told(self, error: Any) -> str:
        """Returns what the server says about an error, in one line, without the key."""
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        line = start_of(str(said or error.__cause__ or error), 300)
        return line.replace(self.key, "***") if self.key else line


def _key(name: str | None) -> str:
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key:
        raise InputError(
            f"the environment variable {name} with the API key is not set on {socket.gethostname()}",
            remedy="Export it where the workers run: on a cluster before `ray start`.",
        )
    return key


def _grey_picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (TRIAL_SIDE, TRIAL_SIDE), (128, 128, 128)).save(buffer, "JPEG")
    return buffer.getvalue()
