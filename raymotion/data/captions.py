"""Filters out captions without readable text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Letters and symbols according to Unicode, but blank or placeholders for lost characters.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\ufffd")
# Special tokens of a tokenizer, left by other programs in place of a missing caption.
_MARKS = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")


def is_readable(caption: str) -> bool:
    """Returns whether a caption has a visible character: a letter, digit, punctuation mark or symbol.

    Spaces, control and zero-width characters, byte order marks, soft hyphens, accents without a letter and special
    tokens such as `[PAD]` do not count.
    """
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in _MARKS.sub("", caption))


def one_line(caption: str | None) -> str:
    """Collapses white space in a caption to single spaces; returns '' if it is not readable."""
    text = " ".join((caption or "").split())
    return text if is_readable(text) else ""


def readable(captions: Iterable[str]) -> list[str]:
    """Returns the readable captions of a sample, in order."""
    return [caption for caption in captions if is_readable(caption)]
