"""WordPiece tokenizers: from the hub, from files, or trained on captions."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.data.captions import is_readable
from raymotion.errors import InputError
from raymotion.weights import first_line, folder_of, from_hub

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

FILE = "tokenizer.json"
PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
CONFIG = "tokenizer_config.json"
# A vocabulary is taken to be cased if more than this share of its pieces has a capital letter.
CASED_SHARE = 0.01


def train_tokenizer(captions: Iterable[str], *, size: int = 4000, min_frequency: int = 2) -> PreTrainedTokenizerFast:
    """Trains a lower-casing WordPiece tokenizer on `captions`, deterministically.

    Args:
        size: maximum number of pieces, including the five special ones.
        min_frequency: minimum frequency of a merged pair.
    """
    from tokenizers import Tokenizer, models, trainers

    texts = [text for text in captions if is_readable(text)]
    if not texts:
        raise InputError(
            "there are no captions to train a tokenizer from", remedy="Name a tokenizer: --set tokenizer.source=FOLDER."
        )
    core = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    _like_bert(core)
    pre_tokenize, normalize = core.pre_tokenizer.pre_tokenize_str, core.normalizer.normalize_str
    words = {word for text in texts for word, _ in pre_tokenize(normalize(text))}
    letters = sorted({letter for word in words for letter in word})
    # The trainer numbers continuation letters (##a) in hash order, which differs between runs, and breaks ties by those
    # numbers. Listing them first fixes the order.
    alphabet = [*letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, len(SPECIAL) + len(alphabet)),
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL, *alphabet],
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    # Rebuilt from the pieces, because letters are not special tokens.
    return _from_pieces(core.get_vocab())


def load_tokenizer(source: storage.PathLike, *, shown: str | None = None) -> PreTrainedTokenizerFast:
    """Loads a WordPiece tokenizer from a `vocab.txt`, a `tokenizer.json`, a folder with one of them, or a hub id.

    Args:
        shown: name of the file in messages; default: its path.

    Raises:
        InputError: the tokenizer is missing, or is not WordPiece with BERT's special tokens.
    """
    text = folder_of(str(source))
    if storage.suffix(text) == ".txt":
        return _from_vocabulary_file(text)
    if storage.suffix(text) == ".json":
        return _from_json(text, shown)
    for name, read in ((FILE, _from_json), ("vocab.txt", _from_vocabulary_file)):
        if storage.exists(storage.join(text, name)):
            return read(storage.join(text, name))
    if storage.is_remote(text) or os.path.isdir(text):
        raise InputError(f"holds neither {FILE} nor vocab.txt", path=text)
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError("no such tokenizer file or folder", path=text)
    return _from_hub(text)


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the tokenizer as the text of a `tokenizer.json`."""
    core: Tokenizer = tokenizer.backend_tokenizer
    core.no_padding()  # set by earlier calls; not part of the tokenizer
    core.no_truncation()
    return core.to_str(pretty=False)


@dataclass(frozen=True)
class Reading:
    """The tokens of one caption.

    Attributes:
        ids: ids of the pieces, [CLS] first and [SEP] last.
        words, unknown: number of words, and of words read as [UNK].
    """

    ids: list[int]
    words: int
    unknown: int

    @property
    def says_something(self) -> bool:
        """Whether it has a known word. All captions without one get the same prediction."""
        return self.words > self.unknown


def encode(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], max_length: int) -> list[list[int]]:
    """Returns the token ids of each caption, [CLS] first and [SEP] last, truncated to `max_length`, without padding.

    An empty caption is [CLS] [SEP]. Markers such as [PAD] or [MASK] in a caption are read as text.
    """
    return [reading.ids for reading in read(tokenizer, captions, max_length)]


def read(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str], max_length: int) -> list[Reading]:
    """Encodes captions as `encode` does, and counts their known words."""
    if not captions:
        return []
    encoded = tokenizer(
        list(captions), truncation=True, max_length=max_length, padding=False, add_special_tokens=True,
        split_special_tokens=True,
    )  # fmt: skip
    unknown = tokenizer.unk_token_id
    readings = []
    for one in encoded.encodings or []:
        ids = list(one.ids)
        words = {word for word in one.word_ids if word is not None}
        readings.append(Reading(ids, len(words), sum(piece == unknown for piece in ids)))
    return readings


def known_captions(
    tokenizer: PreTrainedTokenizerFast, captions: Sequence[Sequence[str]], max_length: int
) -> list[list[str]]:
    """Returns the captions of each sample that have a known word (`Reading.says_something`), in order."""
    readable = [[text for text in own if is_readable(text)] for own in captions]
    readings = iter(read(tokenizer, [text for own in readable for text in own], max_length))
    return [[text for text in own if next(readings).says_something] for own in readable]


def unknown_share(
    tokenizer: PreTrainedTokenizerFast, captions: Sequence[Sequence[str]], max_length: int
) -> list[float | None]:
    """Returns the share of unknown words in the captions of each sample; None without any word."""
    readings = iter(read(tokenizer, [text for own in captions for text in own], max_length))
    shares: list[float | None] = []
    for own in captions:
        some = [next(readings) for _ in own]
        words = sum(reading.words for reading in some)
        shares.append(sum(reading.unknown for reading in some) / words if words else None)
    return shares


def _like_bert(core: Tokenizer, *, lower: bool = True, rules: Mapping[str, Any] | None = None) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    rules = rules or {}
    core.normalizer = normalizers.BertNormalizer(
        lowercase=lower,
        strip_accents=rules.get("strip_accents"),  # None: as `lowercase`
        handle_chinese_chars=rules.get("tokenize_chinese_chars", True),
    )
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
    if sorted(ids.values()) != [*range(len(ids))]:
        raise InputError(f"does not number its {len(ids)} pieces from 0 to {len(ids) - 1}", path=where)
    core.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=UNKNOWN, pad_token=PAD, cls_token=CLS, sep_token=SEP, mask_token=MASK
    )


def _from_pieces(
    ids: dict[str, int], *, where: object = None, lower: bool = True, rules: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    _like_bert(core, lower=lower, rules=rules)
    core.add_special_tokens([token for token in SPECIAL if token in ids])
    return _finished(core, where=where)


def _from_vocabulary_file(path: str) -> PreTrainedTokenizerFast:
    words = storage.read_text(path).splitlines()
    ids = {word: i for i, word in enumerate(words)}
    if len(ids) != len(words):
        twice = next(word for i, word in enumerate(words) if ids[word] != i)
        raise InputError(f"names the piece {twice!r} twice", path=path)
    rules = _rules_beside(path)
    lower = rules.get("do_lower_case")
    return _from_pieces(ids, where=path, lower=not _is_cased(words) if lower is None else lower, rules=rules)


def _is_cased(pieces: Sequence[str]) -> bool:
    """Returns whether a vocabulary distinguishes capital letters; markers ([CLS], [unused7]) do not count."""
    words = [piece for piece in pieces if not (piece.startswith("[") and piece.endswith("]"))]
    return sum(word != word.lower() for word in words) > CASED_SHARE * len(words)


def _rules_beside(path: str) -> dict[str, Any]:
    """Reads the rules for letters in the tokenizer_config.json next to a vocabulary; empty if there is none.

    Raises:
        InputError: a rule is not true or false.
    """
    place = storage.join(storage.parent(storage.absolute(path)), CONFIG)
    if not storage.exists(place):
        return {}
    found = storage.read_json(place)
    if not isinstance(found, dict):
        raise InputError("holds no mapping", path=place)
    rules = {}
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if found.get(name) is not None:
            if not isinstance(found[name], bool):
                raise InputError(f"{name} is {found[name]!r}, not true or false", path=place)
            rules[name] = found[name]
    return rules


def _from_json(path: str, shown: str | None = None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    where = shown or path
    value = storage.read_json(path)
    with _explained(where):
        kind = value["model"]["type"]
        core = Tokenizer.from_str(json.dumps(value))
    if kind != "WordPiece":
        raise InputError(f"is a {kind} tokenizer; VisualBERT reads WordPiece", path=where)
    with _explained(where):
        core.no_padding()
        core.no_truncation()
        tokenizer = _finished(_cased_as_told(core, path), where=where)
        encode(tokenizer, ["One word, [PAD] 2."], 8)  # a damaged normaliser may fail only when used
    return tokenizer


def _cased_as_told(core: Tokenizer, path: str) -> Tokenizer:
    """Applies the letter rules of tokenizer_config.json if they differ from tokenizer.json.

    transformers does the same, because an old tokenizer.json may have been made without these rules.
    """
    rules = _rules_beside(path)
    normalizer = json.loads(core.to_str()).get("normalizer") or {}
    lower = rules.get("do_lower_case", normalizer.get("lowercase"))
    if normalizer.get("type") == "BertNormalizer" and lower != normalizer.get("lowercase"):
        _like_bert(core, lower=bool(lower), rules=rules)
    return core


@contextlib.contextmanager
def _explained(path: object) -> Iterator[None]:
    """Converts errors and panics of the Rust library on a damaged tokenizer to an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"is not a tokenizer ({first_line(error)})", path=path) from error


def _from_hub(name: str) -> PreTrainedTokenizerFast:
    try:
        file = storage.join(from_hub(name, [FILE]), FILE)
    except InputError as error:
        why = first_line(error.__cause__ or error)
        raise InputError(
            f"tokenizer {name!r} could be had neither as a file nor from the hub ({why})",
            remedy="Name a folder with tokenizer.json or vocab.txt, or use tokenizer.source=train.",
        ) from error
    return _from_json(file)
