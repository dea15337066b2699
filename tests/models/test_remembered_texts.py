"""What a frozen text tower says of captions is kept on this machine: complete, of this tower alone, and never cut."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion.folders.local_copy import default_cache
from raymotion.models.text import remembered as module
from raymotion.models.text.bert import BertShape
from raymotion.models.text.encoders import BertEncoder
from raymotion.models.text.remembered import RememberedTexts, read_frozen

CPU = torch.device("cpu")
SHAPE = BertShape(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


class Counting(BertEncoder):
    """A small BERT that counts the captions it reads, and stops before it reads more than `most`."""

    def __init__(self, seed: int = 0, layers: tuple[int, ...] | None = None) -> None:
        torch.manual_seed(seed)
        super().__init__(50, SHAPE, layers=layers)
        self.eval()
        self.read, self.most = 0, 10_000

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        if self.read + len(input_ids) > self.most:
            raise KeyboardInterrupt
        self.read += len(input_ids)
        return super().forward(input_ids, attention_mask)


@pytest.fixture
def captions() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.array([2, *rng.integers(5, 50, rng.integers(1, 9)), 3], dtype=np.int32) for _ in range(100)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 30)
    monkeypatch.setattr(module, "CAPTIONS", 10)


def alone(tower: BertEncoder, captions: list[np.ndarray]) -> torch.Tensor:
    """Reads each caption by itself."""
    ids = [torch.from_numpy(own.astype(np.int64))[None] for own in captions]
    return torch.cat([read_frozen(tower, own, torch.ones_like(own)) for own in ids])


def test_numbers_are_those_of_each_caption_by_itself(captions: list[np.ndarray], tmp_path: Path) -> None:
    tower = Counting(layers=(0, 2))
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add([*captions, *captions])
    different = len({own.tobytes() for own in captions})
    assert tower.read == different and len(list(tmp_path.glob("*/numbers.npy"))) == 4
    order = np.random.default_rng(1).permutation(100)
    found = texts.read([captions[i].tolist() for i in order], CPU)
    assert tower.read == different
    torch.testing.assert_close(found, alone(Counting(layers=(0, 2)), [captions[i] for i in order]))
    # In another order they are the same captions.
    again = Counting(layers=(0, 2))
    texts = RememberedTexts(again, cache=str(tmp_path))
    texts.add([captions[i] for i in order])
    assert again.read == 0 and torch.equal(texts.read([captions[i] for i in order], CPU), found)


def test_an_interrupted_run_goes_on_where_it_was(captions: list[np.ndarray], tmp_path: Path) -> None:
    tower = Counting()
    tower.most = 75
    with pytest.raises(KeyboardInterrupt):
        RememberedTexts(tower, cache=str(tmp_path)).add(captions)
    kept = sum(len(np.load(path)) for path in tmp_path.glob("*/numbers.npy"))
    assert 0 < kept <= tower.read <= 75
    assert not list(tmp_path.glob(".*.tmp"))
    again = Counting()
    texts = RememberedTexts(again, cache=str(tmp_path))
    texts.add(captions)
    assert again.read == len({own.tobytes() for own in captions}) - kept
    torch.testing.assert_close(texts.read(captions, CPU), alone(Counting(), captions))


def test_one_more_caption_reads_its_own_block_and_no_other(captions: list[np.ndarray], tmp_path: Path) -> None:
    RememberedTexts(Counting(), cache=str(tmp_path)).add(captions)
    before = {*tmp_path.glob("*/numbers.npy")}
    new = np.array([2, *range(5, 16), 3], dtype=np.int32)  # longer than the others
    tower = Counting()
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add([new, *captions])
    (block,) = {*tmp_path.glob("*/numbers.npy")} - before
    assert len(before) == 4 and tower.read == len(np.load(block)) < 50
    torch.testing.assert_close(texts.read([new, *captions], CPU), alone(Counting(), [new, *captions]))


def test_many_captions_are_in_no_more_files_than_a_process_may_open(
    captions: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(module, "MOST", 16)
    texts = RememberedTexts(Counting(), cache=str(tmp_path))
    texts.add(captions)
    assert len(list(tmp_path.glob("*/numbers.npy"))) == 16
    torch.testing.assert_close(texts.read(captions, CPU), alone(Counting(), captions))


@pytest.mark.parametrize("name", ["AVX2", "DEFAULT"])
def test_a_processor_with_other_instructions_reads_for_itself(
    captions: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    RememberedTexts(Counting(), cache=str(tmp_path)).add(captions)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    tower = Counting()
    RememberedTexts(tower, cache=str(tmp_path)).add(captions)
    assert tower.read == len({own.tobytes() for own in captions})


@pytest.mark.parametrize("other", [{"seed": 1}, {"layers": (1,)}])
def test_another_tower_reads_for_itself(captions: list[np.ndarray], tmp_path: Path, other: Any) -> None:
    RememberedTexts(Counting(), cache=str(tmp_path)).add(captions)
    tower = Counting(**other)
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add(captions)
    assert tower.read == len({own.tobytes() for own in captions})
    torch.testing.assert_close(texts.read(captions, CPU), alone(Counting(**other), captions))


def test_a_damaged_copy_is_made_again(captions: list[np.ndarray], tmp_path: Path) -> None:
    RememberedTexts(Counting(), cache=str(tmp_path)).add(captions)
    path = sorted(tmp_path.glob("*/numbers.npy"))[0]
    size = len(np.load(path))
    path.write_bytes(path.read_bytes()[:-8])
    tower = Counting()
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add(captions)
    assert tower.read == size < 50
    torch.testing.assert_close(texts.read(captions, CPU), alone(Counting(), captions))


def test_the_default_is_the_cache_which_is_not_the_users_in_these_tests(captions: list[np.ndarray]) -> None:
    tower, folder = Counting(seed=7), Path(default_cache()) / "texts"
    before = {*folder.glob("*")}
    RememberedTexts(tower).add(captions)
    assert tower.read > 0 and {*folder.glob("*")} - before
    assert not folder.resolve().is_relative_to(Path.home() / ".cache")


def test_what_was_not_added_is_read_now(captions: list[np.ndarray], tmp_path: Path) -> None:
    tower = Counting()
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add(captions[:50])
    before = tower.read
    known = {own.tobytes() for own in captions[:50]}
    new = [own for own in captions if own.tobytes() not in known]
    torch.testing.assert_close(texts.read([*new, *captions[:50]], CPU), alone(Counting(), [*new, *captions[:50]]))
    assert tower.read == before + len(new) and texts.read([], CPU).shape == (0, 8)


def test_a_cache_that_cannot_be_written_stops_nothing(
    captions: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")  # tests may run as root, which may write into any folder
    tower, other = Counting(), Counting()
    texts = RememberedTexts(tower, cache=str(tmp_path / "file" / "texts"))
    texts.add(captions)
    read = tower.read
    assert read == len({own.tobytes() for own in captions}), "each caption is read once"
    cached = RememberedTexts(other, cache=str(tmp_path / "texts"))
    cached.add(captions)
    assert torch.equal(texts.read(captions, CPU), cached.read(captions, CPU)) and tower.read == read
    (said,) = caplog.messages
    assert "file/texts: " in said and "stays in memory" in said and "XDG_CACHE_HOME" in said


def test_a_cache_that_fills_up_keeps_what_was_written(
    captions: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = []

    def full(path: Path) -> None:
        blocks.append(path)
        if len(blocks) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "reserve", full)
    tower = Counting()
    texts = RememberedTexts(tower, cache=str(tmp_path))
    texts.add(captions)
    assert len(blocks) == 2 and len(list(tmp_path.glob("*/numbers.npy"))) == 1 and not list(tmp_path.glob(".*.tmp"))
    wanted = alone(Counting(), captions)
    torch.testing.assert_close(texts.read(captions, CPU), wanted, rtol=1e-5, atol=1e-5)
