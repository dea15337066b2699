from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def _rebind(folder: Path) -> None:
    """Makes edited files of a checkpoint pass for those that were written with its weights, as a forger would."""
    from safetensors.torch import load_file, save_file

    from raymotion.models.checkpoint_files import MARK, binding

    tokenizer = folder / "tokenizer.json"
    config, vocabulary, training = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "vocabulary", "training")
    )
    text = tokenizer.read_text() if tokenizer.exists() else None
    mark = {MARK: json.dumps(binding(config, vocabulary, text, training))}
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", mark)


@pytest.fixture
def rebind() -> Callable[[Path], None]:
    return _rebind
