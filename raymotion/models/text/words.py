"""Which words of a text a model knows, for texts that a user types: a query, the words for an emotion."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion.models.text.tokenizer import encode

if TYPE_CHECKING:
    from raymotion.models.inputs.captions import Captions

# Words, and letters of each, that a message shows.
SHOWN, LONGEST = 5, 30


@dataclass(frozen=True)
class Words:
    """The words of a text, each once, in order; punctuation is left out, and pictographs count.

    Attributes:
        known, unknown: as the text spells them.
        in_pieces: those of `unknown` that are read in several pieces, of which the model knows something.
        not_read: those that occur only behind the number of word pieces that the model reads, known or not.
    """

    known: tuple[str, ...]
    unknown: tuple[str, ...]
    in_pieces: tuple[str, ...] = ()
    not_read: tuple[str, ...] = ()

    @property
    def says_nothing(self) -> bool:
        """Whether there are words, and each is read as [UNK]: the model cannot tell such texts apart."""
        return bool(self.unknown) and not self.known and not self.in_pieces

    @property
    def count(self) -> int:
        """Number of words."""
        return len(self.known) + len(self.unknown) + len(self.not_read)


def shown_words(words: Sequence[str]) -> str:
    """Returns words as a message shows them: the first few, in quotes."""
    first = ", ".join(repr(own if len(own) <= LONGEST else f"{own[: LONGEST - 3]}...") for own in words[:SHOWN])
    return first + (f" and {len(words) - SHOWN:,} more" if len(words) > SHOWN else "")


def words_of(captions: Captions, training: Mapping[str, Any], text: str) -> Words:
    """Returns which words of a text the model knows.

    A word is unknown if the tokenizer reads it as [UNK], like any other unknown word. Where the model learned its
    word pieces from its training captions, and had room for more, every word that these captions have twice is one
    piece: a word in several pieces is one that they have once, or not at all, and unknown too.

    Args:
        captions: the input of the model. training: contents of its training.json.
    """
    tokenizer = captions.tokenizer
    whole = _has_whole_words(training, len(tokenizer))
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True).encodings[0]
    pieces: dict[int, list[int]] = {}
    for piece, word in enumerate(encoding.word_ids):
        pieces.setdefault(word, []).append(piece)
    # The model reads [CLS] and [SEP] too, which count in its longest text.
    most = len(encode(tokenizer, [text], captions.max_length)[0]) - 2
    found: dict[str, list[str]] = {"known": [], "unknown": [], "in_pieces": [], "not_read": []}
    for own in pieces.values():
        word = text[encoding.offsets[own[0]][0] : encoding.offsets[own[-1]][1]]
        if not any(unicodedata.category(letter)[0] in "LN" or unicodedata.category(letter) == "So" for letter in word):
            continue
        in_pieces = whole and len(own) > 1
        is_unknown = in_pieces or encoding.ids[own[0]] == tokenizer.unk_token_id
        if own[0] >= most:
            found["not_read"].append(word)
            continue
        found["unknown" if is_unknown else "known"].append(word)
        if in_pieces:
            found["in_pieces"].append(word)
    before = {*found["known"], *found["unknown"]}
    found["not_read"] = [own for own in found["not_read"] if own not in before]
    return Words(**{name: tuple(dict.fromkeys(own)) for name, own in found.items()})


def _has_whole_words(training: Mapping[str, Any], pieces: int) -> bool:
    """Returns whether every word that the training captions have twice is one word piece of the model."""
    settings = training.get("settings") or {}
    # A pretrained text model brings its own tokenizer, whatever the setting says: see `TokenizedRecipe`.
    if any(settings.get(name) for name in ("init", "text_init")):
        return False
    tokenizer = settings.get("tokenizer") or {}
    size = tokenizer.get("size")
    return tokenizer.get("source") == "train" and isinstance(size, int) and pieces < size
