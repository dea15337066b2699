"""Settings of a vision-language model behind an endpoint: how it is reached, and what it is asked."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from raymotion.config import File, Metavar, Settings
from raymotion.models.inputs.answers import LARGEST, SMALLEST
from raymotion.models.recipe import TrainRecipe
from raymotion.vocabulary import VOCABULARIES

Format = Literal["json_schema", "json_object", "text"]


class Access(Settings):
    """How the endpoint is reached. None of it changes the answers, so it is not part of the fingerprint."""

    endpoint: Annotated[str, Metavar("URL")] = Field(description="address of the API, up to /v1")
    api_key_env: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="environment variable that holds the API key, on every machine that runs a worker"
    )
    concurrency: int = Field(8, ge=1, le=1024, description="requests that each worker keeps open at once")
    requests_per_minute: float | None = Field(
        None, gt=0, description="most requests a minute from each worker, retries included"
    )
    timeout: Annotated[float, Metavar("SECONDS")] = Field(120.0, gt=0, description="longest wait for an answer")
    retries: int = Field(
        6, ge=0, le=1000, description="retries after 429, 5xx, a timeout or a lost connection, with growing pauses"
    )
    prompt_price: float | None = Field(None, ge=0, description="price of a million prompt tokens, to count the cost")
    completion_price: float | None = Field(None, ge=0, description="price of a million completion tokens")

    @field_validator("endpoint")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an address such as http://gpu-node:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address without user, password and query; a key comes from --api-key-env")
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("leave /chat/completions out")
        return value.rstrip("/")


class Question(Settings):
    """What is asked, besides prompt and vocabulary."""

    served_model: Annotated[str, Metavar("NAME")] = Field(min_length=1, description="name that the server knows it by")
    image_size: int = Field(
        768, ge=SMALLEST, le=LARGEST, description="pictures are sent with at most this many pixels on the longer side"
    )
    response_format: Format = Field(
        "json_schema",
        description="what the server is asked to constrain the answer to; where it refuses, the next one is used, and "
        "said. Every answer is validated in any case",
    )


class VlmSource(Access, Question):
    """A vision-language model behind an OpenAI-compatible endpoint, such as vLLM's. It is asked about each picture."""

    vocabulary: Annotated[str, Metavar("NAME|FILE")] = Field(
        description=f"the emotions: {', '.join(VOCABULARIES)}, or a file with a label in each line"
    )
    prompt: File | None = Field(
        None, description="text with {labels} (a list) or {answer} (the JSON expected) in it  [default: built in]"
    )
    max_tokens: int | None = Field(None, ge=16, description="longest answer  [default: enough for the vocabulary]")


class VlmRecipe(VlmSource, TrainRecipe):
    """The settings of `raymotion wrap vlm`."""

    paths: ClassVar[tuple[str, ...]] = ("vocabulary", "prompt")

    kind: Literal["vlm"] = "vlm"


class VlmConfig(Question):
    """All that determines the answers, as config.json has it.

    Attributes:
        prompt: the text, with its placeholders.
    """

    prompt: str
    max_tokens: int = Field(ge=16)
