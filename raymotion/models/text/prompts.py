"""Texts that say each emotion in words, for models that compare pictures with texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from raymotion.config import Metavar, Settings, read_yaml
from raymotion.errors import InputError
from raymotion.vocabulary import VOCABULARIES, Vocabulary

# Of CLIP's many templates (Radford et al. 2021), reworded for what a picture evokes.
TEMPLATES = ("a photo that evokes {}.", "a picture of {}.", "a scene full of {}.")


class PromptedSource(Settings):
    """The words for each emotion, for a model that compares pictures with texts."""

    vocabulary: Annotated[str, Metavar("NAME|FILE")] | None = Field(
        None,
        description=f"The emotions: {', '.join(VOCABULARIES)}, or a file with a label in each line. `wrap` needs it; "
        "`train` takes that of the samples.",
    )
    templates: Annotated[list[str], Metavar("TEXT")] = Field(
        list(TEMPLATES), description="Sentence with {} for the emotion (repeatable); what they say is averaged."
    )
    prompts: Annotated[str, Metavar("FILE")] | None = Field(
        None, description="YAML of label: [text, ...], used for these labels in place of the templates."
    )


def prompts_of(vocabulary: Vocabulary, templates: Sequence[str], path: str | None) -> list[list[str]]:
    """Returns the texts of each label, in the order of the vocabulary.

    Raises:
        InputError: a template has no place for the label, or the file of prompts is invalid.
    """
    strange = [text for text in templates if text.count("{}") != 1]
    if strange:
        raise InputError(f"the template {strange[0]!r} has no single {{}} for the emotion", remedy="Write {} once.")
    own: dict[str, Any] = {} if path is None else read_yaml(path)
    for label, texts in own.items():
        if label not in vocabulary:
            raise InputError(f"{label!r} is not a label of {vocabulary.name}", path=path)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"{label} has {texts!r}, not a list of texts", path=path)
    return [own.get(label) or [text.replace("{}", label.lower()) for text in templates] for label in vocabulary.labels]
