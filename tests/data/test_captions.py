"""What counts as a caption, and how a tokenizer reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.captions import is_readable, readable
from raymotion.errors import InputError
from raymotion.models.text.tokenizer import (
    encode,
    known_captions,
    load_tokenizer,
    read,
    tokenizer_json,
    train_tokenizer,
    unknown_share,
)

NOTHING = [
    "", " \t\n\u00a0\u3000", "\u200b", "\ufeff", "\u00ad", "\u2060\u200d\u200e", "\x00\x1b", "\u0301", "\u2800",
    "\u3164", "[PAD]", " [CLS] [SEP]\u200b", "[UNK][MASK]", "\ufffd", "\ue000", "\U000e0020",
]  # fmt: skip
SOMETHING = ["a", "7", "!", "?!", "😀", "❤️", "犬", "ا", "[PAD] a", "[pad]", "[", "a\u200bb", "½", "…"]


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_that_a_reader_would_see(text: str) -> None:
    assert not is_readable(text)


@pytest.mark.parametrize("text", SOMETHING)
def test_something_that_a_reader_would_see(text: str) -> None:
    assert is_readable(text)


def test_the_readable_ones_keep_their_order() -> None:
    assert readable(["b", "\u200b", "a", " "]) == ["b", "a"]


VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "Dog", "the", "pad", "[", "]", "a", "man", "Paris"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return tmp_path


@given(text=st.text())
def test_what_gives_no_piece_of_text_says_nothing(text: str) -> None:
    tokenizer = _trained()
    known = known_captions(tokenizer, [[text]], 16)[0]
    pieces = set(encode(tokenizer, [text], 16)[0]) - {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert bool(known) == (is_readable(text) and bool(pieces - {tokenizer.unk_token_id}))


_kept: list = []


def _trained():
    if not _kept:
        _kept.append(train_tokenizer(["a happy dog [ pad ] ! ?", "a sad man"], size=80, min_frequency=1))
    return _kept[0]


def test_marks_in_a_caption_are_read_as_text(folder: Path) -> None:
    for tokenizer in (_trained(), load_tokenizer(folder)):
        ids = tokenizer.convert_tokens_to_ids
        found = encode(tokenizer, ["a [PAD] [CLS] dog [MASK]"], 32)[0]
        special = {tokenizer.pad_token_id, tokenizer.mask_token_id}
        assert not special & set(found) and found.count(tokenizer.cls_token_id) == 1
        assert found[1:3] == [ids("a"), ids("[")] and ids("dog") in found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, ["Dog", "Paris"]),  # capital letters in the vocabulary tell
        ({"do_lower_case": False}, ["Dog", "Paris"]),
        ({"do_lower_case": True}, ["dog", "[UNK]"]),
        ({}, ["Dog", "Paris"]),
    ],
)
def test_a_cased_vocabulary_is_read_with_its_capital_letters(
    folder: Path, config: dict[str, bool] | None, expected: list[str]
) -> None:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["Dog Paris"], 8)[0][1:-1]) == expected
    (folder / "saved").mkdir()
    (folder / "saved" / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    again = load_tokenizer(folder / "saved")
    assert again.convert_ids_to_tokens(encode(again, ["Dog Paris"], 8)[0][1:-1]) == expected


def test_the_config_beside_tokenizer_json_decides_as_in_transformers(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (folder / "tokenizer.json").write_text(
        tokenizer_json(load_tokenizer(folder)).replace('"lowercase":false', '"lowercase":true')
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["Paris"], 8)[0][1:-1]) == ["Paris"]


@pytest.mark.parametrize("text", ["[]", '{"do_lower_case": "no"}', "{", '{"strip_accents": 3}'])
def test_a_config_that_can_not_be_is_named(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


def test_an_uncased_vocabulary_stays_one(tmp_path: Path) -> None:
    pieces = [*VOCAB[:5], "[unused1]", *(f"w{i}" for i in range(200)), "dog", "İ"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, ["DOG"], 8)[0][1:-1]) == ["dog"]


def test_unknown_words_are_counted_by_sample(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    captions = [["the dog", "the zebra dances"], [], ["\u200b"], ["xyz"], ["the man"]]
    assert unknown_share(tokenizer, captions, 16) == [pytest.approx(0.4), None, None, 1.0, 0.0]
    assert known_captions(tokenizer, captions, 16) == [["the dog", "the zebra dances"], [], [], [], ["the man"]]
    assert [one.words for one in read(tokenizer, ["the dog", ""], 16)] == [2, 0]
