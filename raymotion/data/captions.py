"""Which captions say anything at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Letters and symbols to Unicode, but blank, or what stands in for a character that was lost.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\ufffd")
# Marks of a tokenizer: what an earlier program left where there was no caption.
_MARKS = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")


def is_readable(caption: str) -> bool:
    """Whether a caption has a character that a reader would see: a letter, a digit, punctuation or a symbol.

    Spaces, control characters, zero-width characters, a byte order mark, soft hyphens and accents without a letter are
    none, nor are a tokenizer's marks such as `[PAD]`.
    """
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in _MARKS.sub("", caption))


def one_line(caption: str | None) -> str:
    """A caption as readers keep it: each run of white space a single space, and nothing where nobody could read it."""
    text = " ".join((caption or "").split())
    return text if is_readable(text) else ""


def readable(captions: Iterable[str]) -> list[str]:
    """The captions of one sample that `is_readable`, in their order."""
    return [caption for caption in captions if is_readable(caption)]
