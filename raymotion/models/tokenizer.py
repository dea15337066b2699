"""WordPiece tokenizers: by hub id, from local files, or trained from the captions at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from raymotion import storage
from raymotion.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FILE = "tokenizer.json"
PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)


def train_tokenizer(captions: Iterable[str], *, size: int = 4000, min_frequency: int = 2) -> PreTrainedTokenizerFast:
    """A lower-cased WordPiece tokenizer learned from `captions`. The same captions give the same tokenizer.

    Args:
        size: most pieces it may have, the five special ones included.
        min_frequency: a pair seen less often is not merged.
    """
    from tokenizers import Tokenizer, models, trainers

    texts = [text for text in captions if text.strip()]
    if not texts:
        raise InputError(
            "there are no captions to train a tokenizer from", remedy="Name a tokenizer: --set tokenizer.source=FOLDER."
        )
    core = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    _like_bert(core)
    pre_tokenize, normalize = core.pre_tokenizer.pre_tokenize_str, core.normalizer.normalize_str
    words = {word for text in texts for word, _ in pre_tokenize(normalize(text))}
    letters = sorted({letter for word in words for letter in word})
    # The trainer numbers continued letters (##a) in the order of a hash map, which differs from run to run, and
    # breaks ties by those numbers. Named up front, they come in our order.
    alphabet = [*letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(SPECIAL) + len(alphabet)),
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL, *alphabet],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    # Built anew from the pieces, since letters are no special tokens.
    return _from_pieces(core.get_vocab())


def load_tokenizer(source: storage.PathLike) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer from a `vocab.txt`, a `tokenizer.json`, a folder that holds one of them, or a hub id.

    Raises:
        InputError: nothing is there, or it is not WordPiece with BERT's special tokens.
    """
    text = str(source)
    if storage.suffix(text) == ".txt":
        return _from_vocabulary_file(text)
    if storage.suffix(text) == ".json":
        return _from_json(text)
    for name, read in ((FILE, _from_json), ("vocab.txt", _from_vocabulary_file)):
        if storage.exists(storage.join(text, name)):
            return read(storage.join(text, name))
    if storage.is_remote(text) or os.path.isdir(text):
        raise InputError(f"holds neither {FILE} nor vocab.txt", path=text)
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError("no such tokenizer file or folder", path=text)
    return _from_hub(text)


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole tokenizer as the text of a `tokenizer.json`."""
    core: Tokenizer = tokenizer.backend_tokenizer
    core.no_padding()  # set by earlier calls; not part of what the tokenizer is
    core.no_truncation()
    return core.to_str(pretty=False)


def encode(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each caption, [CLS] first and [SEP] last, cut to `max_length`. Not padded: see `visualbert.pad`.

    An empty caption is [CLS] [SEP]: nothing to attend to but the two markers.
    """
    if not captions:
        return []
    encoded = tokenizer(list(captions), truncation=True, max_length=max_length, padding=False, add_special_tokens=True)
    return [list(ids) for ids in encoded["input_ids"]]


def _like_bert(core: Tokenizer) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()


def _finished(core: Tokenizer, *, where: object = None) -> PreTrainedTokenizerFast:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    missing = [token for token in (PAD, UNKNOWN, CLS, SEP) if core.token_to_id(token) is None]
    if missing:
        raise InputError(
            f"has no {', '.join(missing)}", path=where, remedy="Give a WordPiece vocabulary with BERT's special tokens."
        )
    ids = core.get_vocab()
    core.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def _from_pieces(ids: dict[str, int], *, where: object = None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    _like_bert(core)
    core.add_special_tokens([token for token in SPECIAL if token in ids])
    return _finished(core, where=where)


def _from_vocabulary_file(path: str) -> PreTrainedTokenizerFast:
    words = storage.read_text(path).splitlines()
    ids = {word: i for i, word in enumerate(words)}
    if len(ids) != len(words):
        twice = next(word for i, word in enumerate(words) if ids[word] != i)
        raise InputError(f"names the piece {twice!r} twice", path=path)
    return _from_pieces(ids, where=path)


def _from_json(path: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    text = storage.read_text(path)
    try:
        kind = json.loads(text)["model"]["type"]
        core = Tokenizer.from_str(text)
    except Exception as error:  # json, KeyError, and whatever the Rust side raises
        raise InputError(f"is not a tokenizer ({str(error).splitlines()[0]})", path=path) from error
    if kind != "WordPiece":
        raise InputError(f"is a {kind} tokenizer; VisualBERT reads WordPiece", path=path)
    core.no_padding()
    core.no_truncation()
    return _finished(core, where=path)


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers.utils import cached_file

    try:
        file = cached_file(name, FILE)
        if file is None:
            raise OSError("no tokenizer.json there")
        Tokenizer.from_file(file)
    except Exception as error:
        raise InputError(
            f"tokenizer {name!r} could be had neither as a file nor from the hub ({str(error).splitlines()[0]})",
            remedy="Name a folder with tokenizer.json or vocab.txt, or use tokenizer.source=train.",
        ) from error
    return _from_json(file)
