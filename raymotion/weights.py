"""Names of weights, and the files that they refer to. Does not import torch.

    default               the weights published for the model, as defined in its module
    random, random:SEED   untrained, drawn from SEED (default 0)
    owner/name            a repository on the Hugging Face hub, downloaded unless cached; also `owner/name@REVISION`, and
                          `hf://owner/name` if a local folder has the same name
    PATH                  a weights file, or a folder with one of `FILES`; local, or an address such as `s3://...`

A model is identified by the content of its weights, not by their name: see `identify`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from raymotion import storage
from raymotion.errors import InputError

DEFAULT = "default"
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
HUB = "hf://"
REPOSITORY = r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*"
_HUB_ID = re.compile(rf"{REPOSITORY}(@[\w./-]+)?")


def from_hub(name: str, files: Sequence[str] = FILES, beside: Sequence[str] = ()) -> str:
    """Returns the local folder of a repository's files, and downloads them unless they are cached.

    Args:
        name: `owner/name` or `owner/name@REVISION`.
        files: alternatives; the first that exists is used.
        beside: further files, all of them required.

    Raises:
        InputError: the hub has no such repository or file, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        for file in beside:
            hf_hub_download(repository, file, revision=revision or None)
        for file in files:
            try:
                return storage.parent(hf_hub_download(repository, file, revision=revision or None))
            except EntryNotFoundError:  # also raised if the hub cannot be reached and the file is not cached
                if file == files[-1]:
                    raise
        raise ValueError("no file was asked for")
    except Exception as error:  # not found, denied, no network, offline: each has its own classes
        wanted = " and ".join([" or ".join(files), *beside])
        raise InputError(
            f"the weights could not be had from the hub ({first_line(error)})",
            path=name,
            remedy=f"Put its {wanted} into a folder, and name that folder.",
        ) from error


# Prefix of the name -> function that maps (the rest, alternative files, required files) to the path of a folder.
SCHEMES: dict[str, Callable[[str, Sequence[str], Sequence[str]], str]] = {"hf": from_hub}


def _split(weights: str) -> tuple[str, str]:
    """Returns a key of `SCHEMES` (empty for a path) and the rest."""
    scheme, colon, rest = weights.partition(":")
    if colon and scheme in SCHEMES:
        return scheme, rest.removeprefix("//")
    is_hub_id = _HUB_ID.fullmatch(weights) is not None and not weights.endswith(SUFFIXES)
    return ("hf", weights) if is_hub_id and not storage.exists(weights) else ("", weights)


def seed_of(weights: str) -> int | None:
    """Returns the seed of `random:SEED`, 0 for `random`, and None for other weights.

    Raises:
        InputError: the seed is not a number.
    """
    scheme, _, seed = weights.partition(":")
    if scheme != "random":
        return None
    if not (seed or "0").isdecimal():
        raise InputError(f"weights {weights!r}: the seed is not a number", remedy="Write random:0.")
    return int(seed or "0")


def locate(weights: str) -> str:
    """Makes a path absolute, so that it means the same in every process; returns other names unchanged."""
    named = weights == DEFAULT or seed_of(weights) is not None or _split(weights)[0]
    return weights if named else storage.absolute(weights)


def find(weights: str, *, beside: Sequence[str] = ()) -> str:
    """Returns the path or address of a weights file, and downloads it if it is on the hub.

    Args:
        weights: neither `default` nor `random`.
        beside: further files that a folder or repository must contain; not checked if `weights` is a file.

    Raises:
        InputError: there is no such file or folder, the folder lacks a file, or the download fails.
    """
    scheme, rest = _split(weights)
    if scheme:
        folder = SCHEMES[scheme](rest, FILES, beside)
    elif storage.is_dir(weights):
        folder = weights
    elif storage.exists(weights):
        return weights
    else:
        raise InputError(
            "no such weights file or folder",
            path=weights,
            remedy="Give the path of a state dict, a hub id, 'default' or 'random:SEED'.",
        )
    names = storage.list_names(folder)
    found = [name for name in FILES if name in names]
    missing = [*(name for name in beside if name not in names), *([] if found else [" or ".join(reversed(FILES))])]
    if missing:
        raise InputError(
            f"holds no {', and no '.join(missing)}", path=weights, remedy="Name the folder of the weights."
        )
    return storage.join(folder, found[0])


def identify(weights: str, published: str, *, digits: int = 64) -> str:
    """Returns a text that identifies weights: equal weights give equal texts, whatever their names.

    Args:
        weights: name of the weights.
        published: identity of the `default` weights.
        digits: number of hex digits of a file's SHA-256 to keep.

    Returns:
        `random:SEED`, `published`, or `sha256:HEX` of the weights file.
    """
    seed = seed_of(weights)
    if seed is not None:
        return f"random:{seed}"
    return published if weights == DEFAULT else digest(find(weights), digits=digits)


def digest(path: storage.PathLike, *, digits: int = 64) -> str:
    """Returns `sha256:HEX` of a weights file."""
    return f"sha256:{storage.sha256_file(path)[:digits]}"


def first_line(error: BaseException) -> str:
    """Returns the first line of the error's message without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
