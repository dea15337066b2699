"""Captions as word pieces. A sample may have several captions; their predictions are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raymotion import records, storage
from raymotion.data.captions import is_readable, readable
from raymotion.errors import InputError
from raymotion.models.inputs.base import Bound, Draft, Evidence, Input, Prepared
from raymotion.models.text.tokenizer import (
    encode,
    known_captions,
    load_tokenizer,
    tokenizer_json,
    train_tokenizer,
    unknown_share,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerFast

    from raymotion.models.recipe import TrainRecipe

TOKENIZER = "tokenizer.json"
LONGEST = 512
AGAIN = "Run the same command again: it prepares the data again."


def pad(sequences: Sequence[Sequence[int] | np.ndarray], *, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pads token ids to the longest; returns `input_ids` and `attention_mask`, int64 (n, longest)."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


@dataclass
class Tokens:
    """The `Evidence` of captions: all captions of each sample, at least one, between [CLS] and [SEP].

    Attributes:
        tokens: word pieces of all captions. owners: the sample of each caption, ascending.
    """

    present: np.ndarray
    tokens: Sequence[Sequence[int] | np.ndarray]
    owners: np.ndarray
    pad_id: int = 0

    def take(self, rows: np.ndarray) -> Tokens:
        """See `Evidence`."""
        first = np.searchsorted(self.owners, np.arange(len(self.present) + 1))
        chosen = [(place, i) for place, row in enumerate(rows) for i in range(first[row], first[row + 1])]
        owners = np.array([place for place, _ in chosen], dtype=np.int64)
        return Tokens(self.present[rows], [self.tokens[i] for _, i in chosen], owners, self.pad_id)

    def tensors(self, device: str) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` (captions, T) int64, and `owners` (captions,)."""
        import torch

        ids, mask = pad(self.tokens, pad_id=self.pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask, "owners": self.owners}
        return {name: torch.from_numpy(own).to(device) for name, own in arrays.items()}

    def parts(self) -> Mapping[str, np.ndarray]:
        """See `Evidence`."""
        return {"captions": self.present}


class _OneEach:
    """The `Draft` of captions: one caption per sample, with some words possibly replaced by [UNK]."""

    shown, weights = True, None

    def __init__(
        self, source: PreparedCaptions, rows: np.ndarray, rng: np.random.Generator, word_dropout: float
    ) -> None:
        self.tokenizer, self.rng, self.word_dropout = source.tokenizer, rng, word_dropout
        self.present = source.present[rows]
        self.chosen = [source.tokens[rng.integers(source.first[row], source.first[row + 1])] for row in rows]

    def hide(self, rows: np.ndarray) -> None:
        blank = np.array([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id], dtype=np.int32)
        self.chosen = [blank if hide else tokens for tokens, hide in zip(self.chosen, rows, strict=True)]

    def tensors(self, device: str) -> dict[str, Any]:
        import torch

        tokenizer = self.tokenizer
        ids, attention = pad(self.chosen, pad_id=tokenizer.pad_token_id)
        if self.word_dropout:
            word = (attention == 1) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
            ids[word & (self.rng.random(ids.shape) < self.word_dropout)] = tokenizer.unk_token_id
        return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(attention).to(device)}


class PreparedCaptions(Prepared, Bound):
    """Captions of a training set.

    Attributes:
        pieces, ends: concatenated token ids of all captions, and the end of each caption.
        owners: the sample of each caption, ascending. Samples without captions have an empty one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        pieces: np.ndarray,
        ends: np.ndarray,
        owners: np.ndarray,
        present: np.ndarray,
        counts: Mapping[str, int] | None = None,
        *,
        max_length: int,
    ) -> None:
        self.tokenizer, self.pieces, self.ends, self.owners = tokenizer, pieces, ends, owners
        self.max_length = max_length
        self.present, self.counts = present, counts or {}
        starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
        self.tokens: list[np.ndarray] = [pieces[a:b] for a, b in zip(starts, ends, strict=True)]
        self.first = np.searchsorted(owners, np.arange(len(present) + 1))

    def take(self, rows: np.ndarray) -> PreparedCaptions:
        chosen = [(place, i) for place, row in enumerate(rows) for i in range(self.first[row], self.first[row + 1])]
        tokens = [self.tokens[i] for _, i in chosen]
        return PreparedCaptions(
            self.tokenizer,
            np.concatenate([np.zeros(0, np.int32), *tokens]).astype(np.int32),
            np.cumsum([len(own) for own in tokens]),
            np.array([place for place, _ in chosen], dtype=np.int64),
            self.present[rows],
            self.counts,
            max_length=self.max_length,
        )

    def described(self, training: np.ndarray) -> Captions:
        return Captions(self.max_length, tokenizer=self.tokenizer, used=bool(self.present[training].any()))

    def contents(self) -> list[Any]:
        # Digests of the tokens, because texts may differ in characters that the tokenizer does not distinguish.
        return [sha256(own.tobytes()).hexdigest() for own in (self.pieces, self.owners.astype(np.int64))] + [
            sha256(tokenizer_json(self.tokenizer).encode()).hexdigest()
        ]

    def evidence(self, rows: np.ndarray, read: Any = None) -> Evidence:
        chosen = [(place, i) for place, row in enumerate(rows) for i in range(self.first[row], self.first[row + 1])]
        owners = np.array([place for place, _ in chosen], dtype=np.int64)
        return Tokens(self.present[rows], [self.tokens[i] for _, i in chosen], owners, self.tokenizer.pad_token_id)

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        return _OneEach(self, rows, rng, self.word_dropout)

    def texts(self, texts: Sequence[str], device: str) -> dict[str, Any]:
        import torch

        ids, mask = pad(encode(self.tokenizer, texts, self.max_length), pad_id=self.tokenizer.pad_token_id)
        return {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}

    word_dropout = 0.0

    def begin_epoch(self, recipe: TrainRecipe, epoch: int, training: np.ndarray) -> None:
        self.word_dropout = float(getattr(recipe.optimiser, "word_dropout", 0.0))

    def arrange(self, rows: np.ndarray, size: int, recipe: TrainRecipe, epoch: int, rank: int) -> np.ndarray:
        if not getattr(recipe.optimiser, "group_by_length", False):
            return rows
        lengths = np.array([len(self.tokens[first]) for first in self.first[rows]])
        return rows[length_groups(lengths, size, np.random.default_rng([recipe.seed, epoch, rank, 1]))]

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        text = tokenizer_json(self.tokenizer)
        storage.write_text(storage.join(folder, TOKENIZER), text)
        arrays = {"pieces": self.pieces, "ends": self.ends, "owners": self.owners, "present": self.present}
        return {"tokenizer": sha256(text.encode()).hexdigest()}, arrays


class Captions(Input):
    """Captions. The network is called with `input_ids` and `attention_mask` (captions, T) int64.

    In predictions a sample may have several captions, and `owners` (captions,) int64 is the sample of each, ascending;
    in training it has one, drawn anew in each epoch, and `owners` is left out.

    Args:
        max_length: maximum number of word pieces per caption, including [CLS] and [SEP].
        tokenizer: tokenizer of a trained model; None if it is yet to be opened or trained.
        source: tokenizer for training: hub id, file or folder; `train` learns one from the training captions.
        size: maximum number of pieces of a learned tokenizer.
    """

    name: ClassVar[str] = "captions"
    noun = "a caption with a word that it knows"
    plural = "captions"

    def __init__(
        self,
        max_length: int,
        *,
        tokenizer: PreTrainedTokenizerFast | None = None,
        source: str = "train",
        size: int = 4000,
        used: bool = True,
    ) -> None:
        self.max_length, self.source, self.size, self.used = max_length, source, size, used
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the checkpoint."""
        assert self._tokenizer is not None, "the input of a checkpoint that was not opened"
        return self._tokenizer

    @cached_property
    def _begins(self) -> np.ndarray:
        """Which pieces begin a word, bool (pieces,)."""
        pieces = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return ~np.array([piece.startswith("##") for piece in pieces], dtype=bool)

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER: tokenizer_json(self.tokenizer).encode()}

    def open(self, folder: str, *, shown: str) -> None:
        path = storage.join(folder, TOKENIZER)
        self._tokenizer = load_tokenizer(path, shown=storage.join(shown, TOKENIZER))

    def require_fit(self, pieces: int, longest: int) -> None:
        """Raises an `InputError` unless the tokenizer (if opened) and the maximum length match the network."""
        if self._tokenizer is not None and len(self._tokenizer) != pieces:
            raise InputError(f"{TOKENIZER} has {len(self._tokenizer)} pieces, the model reads {pieces}")
        if self.max_length != longest:
            raise InputError(f"captions have at most {self.max_length} pieces, model.max_text_length is {longest}")

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "max_length": self.max_length, "used": self.used}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> Captions:
        longest = value.get("max_length")
        if isinstance(longest, bool) or not isinstance(longest, int) or not 1 <= longest <= LONGEST:
            raise InputError(f"captions: max_length is {longest!r}, not a number from 1 to {LONGEST}", path=where)
        return cls(longest, used=bool(value.get("used", True)))

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedCaptions:
        captions = [readable(own) for own in table.column("captions").to_pylist()]
        # Learned from the training split only: words that occur only in test captions are unknown, as in labelling.
        splits = table.column("split").to_pylist()
        tokenizer = self._made([text for own, split in zip(captions, splits, strict=True) if split == "train"
                                for text in own])  # fmt: skip
        # Captions without a known word are dropped: the model cannot distinguish them.
        known = known_captions(tokenizer, captions, self.max_length)
        counts = {"captions_of_unknown_words": sum(map(len, captions)) - sum(map(len, known))}
        present = np.array([bool(own) for own in known], dtype=bool)
        texts = [own or [""] for own in known]
        tokens = encode(tokenizer, [text for own in texts for text in own], self.max_length)
        return PreparedCaptions(
            tokenizer,
            np.array([piece for sequence in tokens for piece in sequence], dtype=np.int32),
            np.cumsum([len(sequence) for sequence in tokens]),
            np.repeat(np.arange(len(texts)), [len(own) for own in texts]),
            present,
            counts,
            max_length=self.max_length,
        )

    def preparation(self) -> list[Any]:
        return [self.max_length, self.source, self.size]

    def _made(self, captions: Sequence[str]) -> PreTrainedTokenizerFast:
        if self.source != "train":
            return load_tokenizer(self.source)
        if not any(map(is_readable, captions)):
            captions = ["no caption"]  # the model reads other inputs only; its text is [CLS] [SEP]
        return train_tokenizer(captions, size=self.size)

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedCaptions:
        records.read_bytes(storage.join(folder, TOKENIZER), meta["tokenizer"], remedy=AGAIN)
        tokenizer = load_tokenizer(storage.join(folder, TOKENIZER))
        pieces, ends, owners, present = (arrays[name] for name in ("pieces", "ends", "owners", "present"))
        return PreparedCaptions(tokenizer, pieces, ends, owners, present, max_length=self.max_length)

    def known(self, captions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the captions of each sample that contain a known word; none if the model reads no captions.

        All captions without a known word would get the same prediction.
        """
        if not self.used:
            return [[] for _ in captions]
        return known_captions(self.tokenizer, captions, self.max_length)

    def collect(self, items: Sequence[Any]) -> Tokens:
        return self.tokens([item.row["captions"] for item in items])

    def tokens(self, captions: Sequence[Sequence[str]]) -> Tokens:
        """Returns the evidence of n samples from their captions, of which there may be none."""
        known = self.known(captions)
        texts = [own or [""] for own in known]
        tokens = encode(self.tokenizer, [text for own in texts for text in own], self.max_length)
        owners = np.repeat(np.arange(len(texts)), [len(own) for own in texts])
        present = np.array([bool(own) for own in known], dtype=bool)
        return Tokens(present, tokens, owners, self.tokenizer.pad_token_id)

    def statistics(self, evidence: Any) -> Mapping[str, np.ndarray]:
        """Counts the captions that are read, their words, and the share of unknown words.

        A word is one piece or several, of which all but the first begin with `##`; punctuation counts.
        """
        inner = [np.asarray(own)[1:-1] for own in evidence.tokens]
        words = np.array([self._begins[own].sum() for own in inner], dtype=np.float64)
        missing = np.array([(own == self.tokenizer.unk_token_id).sum() for own in inner], dtype=np.float64)
        n = len(evidence.present)
        captions, words, missing = (
            np.where(evidence.present, np.bincount(evidence.owners, weights=own, minlength=n), np.nan)
            for own in (np.ones(len(inner)), words, missing)
        )
        return {"captions": captions, "words": words / captions, "unknown_words": missing / np.maximum(words, 1)}

    def note(self, items: Sequence[Any]) -> None:
        """Stores `captions` (those read) and `unknown_words` (share of unknown words) on the items."""
        captions = [item.row["captions"] for item in items]
        shares: Sequence[float | None] = [None] * len(items)
        if self.used:
            shares = unknown_share(self.tokenizer, captions, self.max_length)
        for item, own, share in zip(items, self.known(captions), shares, strict=True):
            item.output["captions"], item.output["unknown_words"] = own, share


def length_groups(lengths: np.ndarray, size: int, rng: np.random.Generator, *, pool: int = 8) -> np.ndarray:
    """Orders n shuffled rows so that rows of similar length share a batch of `size`; returns positions (n,).

    Sorts rows within pools of `pool` batches and shuffles whole batches, so that epochs neither begin with short rows
    nor repeat batches. The last batch, which may be smaller, stays last.
    """
    pools = [
        start + np.argsort(lengths[start : start + pool * size], kind="stable")
        for start in range(0, len(lengths), pool * size)
    ]
    order = np.concatenate(pools)
    whole = len(order) // size
    shuffled = rng.permutation(whole)
    return np.concatenate((order[: whole * size].reshape(whole, size)[shuffled].ravel(), order[whole * size :]))
