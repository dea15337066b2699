"""WordPiece: the same pieces as BERT's own tokenizer, from every form of file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import InputError
from raymotion.models.text.tokenizer import encode, load_tokenizer, tokenizer_json, train_tokenizer

CAPTIONS = [
    "A happy dog runs on the beach",
    "a sad man in the rain",
    "the dog and the man are happy",
    "rain on the beach",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "run", "##ning", "##s", "a", "."]


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_vocabulary_file_gives_the_pieces_of_the_definition(vocabulary_file: Path) -> None:
    # Longest match first (Wu et al. 2016): running -> run ##ning; an unknown word is one [UNK].
    tokens = encode(load_tokenizer(vocabulary_file), ["A Dog running.", "cat", ""], 16)
    assert tokens == [[2, 9, 5, 6, 7, 10, 3], [2, 1, 3], [2, 3]]


def test_long_captions_keep_their_closing_marker(vocabulary_file: Path) -> None:
    assert encode(load_tokenizer(vocabulary_file), ["dog " * 50], 6) == [[2, 5, 5, 5, 5, 3]]


def test_same_pieces_as_transformers_own_bert_tokenizer(shared_data: Path) -> None:
    from transformers import BertTokenizer

    path = shared_data / "text" / "bert-base-uncased-vocab.txt"
    ours, theirs = load_tokenizer(path), BertTokenizer(str(path))
    texts = [*CAPTIONS, "Zoë's café — déjà vu, unbelievably!", "日本 $12.50 #tag", "x" * 200]
    assert encode(ours, texts, 64) == theirs(texts, truncation=True, max_length=64)["input_ids"]


def test_trained_tokenizer_is_the_same_in_every_process_and_order() -> None:
    here = tokenizer_json(train_tokenizer(CAPTIONS, size=120))
    code = (
        "import sys; from raymotion.models.text.tokenizer import *;"
        f"sys.stdout.write(tokenizer_json(train_tokenizer({CAPTIONS[::-1]!r}, size=120)))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert here == there


@given(st.text(max_size=80))
def test_any_text_survives_the_journey_through_a_file(text: str) -> None:
    tokenizer = TRAINED
    (tokens,) = encode(tokenizer, [text], 12)
    assert tokens[0] == tokenizer.cls_token_id and tokens[-1] == tokenizer.sep_token_id and len(tokens) <= 12
    assert encode(RELOADED, [text], 12) == [tokens]


def test_folder_json_and_s3_forms(tmp_path: Path, s3: str, vocabulary_file: Path) -> None:
    from raymotion import storage

    text = tokenizer_json(load_tokenizer(vocabulary_file))
    storage.write_text(f"{s3}/t/tokenizer.json", text)
    expected = encode(load_tokenizer(vocabulary_file), ["dog runs"], 8)
    for source in (tmp_path, f"{s3}/t", f"{s3}/t/tokenizer.json"):
        assert encode(load_tokenizer(source), ["dog runs"], 8) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\ndog\n", "has no \\[CLS\\], \\[SEP\\]"),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog\ndog\n", "'dog' twice"),
        ("tokenizer.json", "{", "is not JSON"),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}}', "is not a tokenizer"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_other_kinds_and_missing_ones(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(InputError, match="is a BPE tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(InputError, match="neither as a file nor from the hub"):
        load_tokenizer("nobody/nothing")
    with pytest.raises(InputError, match="no captions"):
        train_tokenizer(["", " "])


TRAINED = train_tokenizer(CAPTIONS, size=120)


def _reloaded() -> object:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").write_text(tokenizer_json(TRAINED))
        return load_tokenizer(folder)


RELOADED = _reloaded()
