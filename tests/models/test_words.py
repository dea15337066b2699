"""Which words of a query a model knows: by [UNK], and by what its training captions had."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from raymotion.models.inputs.captions import Captions
from raymotion.models.text.tokenizer import load_tokenizer, train_tokenizer
from raymotion.models.text.words import shown_words, words_of

CAPTIONS = ["A dog runs on the grass.", "The dog runs, it runs.", "A cat on a sofa, a zebra.", "On the sofa: 1 cat!"]
LEARNED = {"settings": {"tokenizer": {"source": "train", "size": 4000}}}


def words(text: str, training: Any = LEARNED, *, longest: int = 32) -> Any:
    return words_of(Captions(longest, tokenizer=train_tokenizer(CAPTIONS)), training, text)


def test_words_are_told_apart_as_the_text_spells_them() -> None:
    found = words("A Dog, a ZEBRA & собака: the dog 🐶!")
    assert found.known == ("A", "Dog", "a", "the", "dog") and found.unknown == ("ZEBRA", "собака", "🐶")
    assert (found.not_read, found.count) == ((), 8)
    assert words("!!! ...") == words("") and words("").count == 0


def test_a_word_in_pieces_is_unknown_only_where_the_training_captions_made_every_word_a_piece() -> None:
    assert words("a zebra").unknown == ("zebra",)
    full = {"settings": {"tokenizer": {"source": "train", "size": 10}}}
    given = {"settings": {"tokenizer": {"source": "bundled:all-MiniLM-L6-v2", "size": 4000}}}
    for training in (full, given, {}):
        assert words("a zebra я", training).unknown == ("я",)


def test_a_text_says_nothing_only_if_each_word_is_read_as_unknown() -> None:
    assert words("cats!").in_pieces == words("cats!").unknown == ("cats",) and not words("cats!").says_nothing
    assert words("cats я").in_pieces == ("cats",) and not words("cats я").says_nothing
    assert not words("a cat я").in_pieces and not words("a cat я").says_nothing
    # Punctuation that the model knows is no word.
    assert words("я, собака!").says_nothing and not words("!").says_nothing and not words("").says_nothing


@pytest.mark.parametrize("name", ["init", "text_init"])
def test_a_pretrained_text_model_brings_words_that_the_training_captions_need_not_have(name: str) -> None:
    """With a folder, the setting `train` stays as it is, and the folder's tokenizer is read."""
    settings = {**LEARNED["settings"], name: "sentences/"}
    assert words("a zebra я", {"settings": settings}).unknown == ("я",)
    assert words("a zebra я", {"settings": {**settings, name: None}}).unknown == ("zebra", "я")


def test_what_is_behind_the_longest_text_is_not_read() -> None:
    found = words("the dog runs on the sofa я", longest=5)
    assert (found.known, found.unknown, found.not_read) == (("the", "dog", "runs"), (), ("on", "sofa", "я"))


def test_every_word_that_real_captions_have_twice_is_known(shared_data: Any) -> None:
    """Counted apart from the tokenizer: 600 pictures of Flickr8k."""
    lines = (shared_data / "flickr8k/captions.csv").read_text().splitlines()[1:]
    captions = [line.partition(",")[2] for line in lines]
    counts = Counter(word for text in captions for word in text.lower().split() if word.isalpha() and word.isascii())
    own = Captions(64, tokenizer=train_tokenizer(captions))
    assert len(own.tokenizer) < 4000
    twice = [word for word, count in counts.items() if count > 1]
    assert len(twice) > 1000 and all(words_of(own, LEARNED, word).known for word in twice)
    once = [word for word, count in counts.items() if count == 1]
    unknown = sum(bool(words_of(own, LEARNED, word).unknown) for word in once)
    assert unknown > 0.9 * len(once)


def test_a_sentence_model_knows_words_in_pieces(shared_data: Any) -> None:
    own = Captions(64, tokenizer=load_tokenizer(shared_data / "text/bert-base-uncased-vocab.txt"))
    assert words_of(own, {}, "a xylophone ☃").unknown == ("☃",)


def test_long_lists_and_words_are_shortened() -> None:
    assert shown_words(["a", "b"]) == "'a', 'b'"
    assert shown_words(["x" * 40, *"abcdef"]) == f"'{'x' * 27}...', 'a', 'b', 'c', 'd' and 2 more"
    assert shown_words(["a\nb"]) == r"'a\nb'"


@pytest.mark.parametrize("settings", [None, {}, {"tokenizer": None}, {"tokenizer": {"source": "train"}}])
def test_a_checkpoint_that_says_nothing_of_its_tokenizer(settings: Any) -> None:
    assert words("a zebra", {"settings": settings}).unknown == ()
