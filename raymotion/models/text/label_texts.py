"""Texts that say what each label of a vocabulary means, from which the last layer of a model of captions can start.

    texts:
      happy:
        - a smiling boy holds a birthday cake
        - friends smile for a photograph at a party

Similarity to the features of such texts is a classifier without training data (label embeddings, Akata et al. 2013;
descriptions in place of names, Menon and Vondrick 2023). `recipes/label_texts/` has files for some vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymotion import storage
from raymotion.config import read_yaml, recipes_folder
from raymotion.data.captions import is_readable
from raymotion.errors import InputError, VocabularyMismatch, guess
from raymotion.vocabulary import Vocabulary

NAMES = "names"


def shipped_label_texts() -> list[str]:
    """Returns the names of the bundled files."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def names_a_file(source: str) -> bool:
    """Returns whether `source` is the address of a file, and not a name."""
    return "/" in source or source.endswith((".yaml", ".yml"))


def _folder() -> Path:
    return recipes_folder() / "label_texts"


def read_label_texts(source: str, vocabulary: Vocabulary) -> list[list[str]]:
    """Returns the texts of each label, in the vocabulary's order.

    Args:
        source: `names` for the labels themselves, a YAML file (`names_a_file`), or the name of a bundled one.

    Raises:
        InputError: the file is missing or for another vocabulary, or a label has no text.
    """
    if source == NAMES:
        return [[label] for label in vocabulary.labels]
    path = source if names_a_file(source) else str(_folder() / f"{source}.yaml")
    if not storage.exists(path):
        known = [NAMES, *shipped_label_texts()]
        hint = guess(source, known).lstrip()
        raise InputError(
            "no such texts of labels", path=source, remedy=f"{hint} Give a YAML file, or {', '.join(known)}.".lstrip()
        )
    value = read_yaml(path)
    if unknown := sorted(set(value) - {"texts"}):
        raise InputError(f"has an unknown entry {unknown[0]!r}", path=source, remedy="There is: texts.")
    texts = value.get("texts")
    if not isinstance(texts, Mapping):
        raise InputError("has no mapping `texts` of labels to lists of texts", path=source)
    if other := [label for label in texts if label not in vocabulary]:
        raise VocabularyMismatch(
            f"setting probe.labels: {source} has texts for {other[0]!r}, which is not an emotion of the vocabulary "
            f"{vocabulary.name}",
            remedy="Give texts for your own labels, --set probe.labels=FILE, or use --set probe.labels=names, or null.",
        )
    return [_checked(texts.get(label), label, source) for label in vocabulary.labels]


def _checked(texts: Any, label: str, source: str) -> list[str]:
    own = [texts] if isinstance(texts, str) else texts
    if not isinstance(own, list) or not own or not all(isinstance(text, str) and is_readable(text) for text in own):
        raise InputError(f"has no list of texts for {label!r}", path=source, remedy="Write one text or more for it.")
    return list(own)
