"""Weights as a user names them, and the files that they stand for. Imports no torch.

    default               what is published for the model, as its own module knows
    random, random:SEED   untrained, drawn from SEED (0)
    owner/name            a repository of the Hugging Face hub, cached or fetched; also `owner/name@REVISION`, and
                          `hf://owner/name` where a local folder has that name too
    PATH                  a weights file, or a folder that holds one (`FILES`); local, or an address such as `s3://...`

A model is told by what its weights are, not by how they were named: see `identify`.
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
    """The local folder of a repository's files, downloaded if the hub's cache lacks them.

    Args:
        name: `owner/name` or `owner/name@REVISION`.
        files: one of these is needed, the first that there is.
        beside: all of these are needed.

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
            except EntryNotFoundError:  # also what an unreachable hub's cache answers
                if file == files[-1]:
                    raise
        raise ValueError("no file was asked for")
    except Exception as error:  # not found, refused, no network, offline and not cached: each has classes of its own
        wanted = " and ".join([" or ".join(files), *beside])
        raise InputError(
            f"the weights could not be had from the hub ({first_line(error)})",
            path=name,
            remedy=f"Put its {wanted} into a folder, and name that folder.",
        ) from error


# Prefix of what a user writes -> what finds the folder: (the rest, one of these files, all of those) -> its path.
SCHEMES: dict[str, Callable[[str, Sequence[str], Sequence[str]], str]] = {"hf": from_hub}


def _split(weights: str) -> tuple[str, str]:
    """A key of `SCHEMES`, or nothing for a path, and the rest."""
    scheme, colon, rest = weights.partition(":")
    if colon and scheme in SCHEMES:
        return scheme, rest.removeprefix("//")
    is_hub_id = _HUB_ID.fullmatch(weights) is not None and not weights.endswith(SUFFIXES)
    return ("hf", weights) if is_hub_id and not storage.exists(weights) else ("", weights)


def seed_of(weights: str) -> int | None:
    """SEED of `random:SEED`, 0 for `random`, None for weights of any other kind.

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
    """`weights` in a form that means the same in every process: a path becomes absolute, anything else stays."""
    named = weights == DEFAULT or seed_of(weights) is not None or _split(weights)[0]
    return weights if named else storage.absolute(weights)


def find(weights: str, *, beside: Sequence[str] = ()) -> str:
    """Path or address of the weights file that `weights` names, fetched if it is on the hub.

    Args:
        weights: neither `default` nor `random`.
        beside: files that a folder or a repository must hold, too. A weights file that is named itself needs none.

    Raises:
        InputError: there is no such file or folder, the folder lacks a file, or the hub does not give it.
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
    """What a model's identity says of its weights: equal texts are equal weights, however they were named.

    Args:
        weights: as the user named them.
        published: what `default` weights are called.
        digits: how many hex digits of a file's SHA-256 are kept.

    Returns:
        `random:SEED`, `published`, or `sha256:HEX` of the weights file.
    """
    seed = seed_of(weights)
    if seed is not None:
        return f"random:{seed}"
    return published if weights == DEFAULT else digest(find(weights), digits=digits)


def digest(path: storage.PathLike, *, digits: int = 64) -> str:
    """`sha256:HEX` of a weights file."""
    return f"sha256:{storage.sha256_file(path)[:digits]}"


def first_line(error: BaseException) -> str:
    """What the error says, in one line without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
