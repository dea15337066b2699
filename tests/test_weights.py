"""What a user names as weights: told apart, located, found, identified."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from raymotion import weights
from raymotion.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model.safetensors").write_bytes(b"numbers")
    return tmp_path / "owner" / "model.safetensors"


def test_seeds() -> None:
    assert [weights.seed_of(text) for text in ("random", "random:7", "default", "randomly", "a/random:3")] == [
        0, 7, None, None, None,
    ]  # fmt: skip
    with pytest.raises(InputError, match="seed is not a number"):
        weights.seed_of("random:x")


def test_a_path_means_the_same_in_every_process(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parents[1])
    for named in ("default", "random:3", "owner/name", "owner/name@main", "hf://owner/name", "s3://bucket/w.pth"):
        assert weights.locate(named) == named
    assert weights.locate("owner/model.safetensors") == str(file)
    assert weights.locate("absent/w.pth") == str(file.parents[1] / "absent" / "w.pth")  # no repository: a weights file


def test_file_and_folder_are_one_identity(file: Path) -> None:
    told = f"sha256:{hashlib.sha256(b'numbers').hexdigest()}"
    assert weights.identify(str(file), "x") == weights.identify(str(file.parent), "x") == told
    assert weights.identify(str(file), "x", digits=16) == told[:23]
    assert weights.identify("default", "timm:tag") == "timm:tag" and weights.identify("random", "x") == "random:0"


def test_what_is_not_there_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such weights"):
        weights.find(str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match=r"holds no config\.yaml"):
        weights.find(str(file.parent), beside=["config.yaml"])
    assert weights.find(str(file), beside=["config.yaml"]) == str(file)


def test_a_scheme_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.SCHEMES, "bundled", lambda name, *_: str(file.parents[1] / name))
    assert weights.find("bundled:owner") == str(file) and weights.locate("bundled:owner") == "bundled:owner"


def test_it_imports_no_torch() -> None:
    code = "import sys, raymotion.weights; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
