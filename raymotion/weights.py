"""Names of weights, as users write them, and the files that they stand for. Does not import torch.

    default               the published weights of the model
    random, random:SEED   untrained, initialised from SEED (0)
    owner/name            a repository of the Hugging Face hub, cached or downloaded; also `owner/name@REVISION`, and
                          `hf://owner/name` if a local folder has the same name
    bundled:NAME          a model in an installed package (`raymotion.bundled`)
    PATH                  a weights file, or a folder that contains one (`FILES`); local, or an address (`s3://...`)

Models record what their weights are, not how they were named: see `identify`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from raymotion import storage
from raymotion.bundled import from_bundle
from raymotion.errors import InputError

DEFAULT = "default"
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
HUB = "hf://"
REPOSITORY = r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*"
_HUB_ID = re.compile(rf"{REPOSITORY}(@[\w./-]+)?")


def from_hub(name: str, files: Sequence[str] = FILES, beside: Sequence[str] = ()) -> str:
    """Returns the local folder of a repository's files, downloaded if they are not cached.

    Args:
        name: `owner/name` or `owner/name@REVISION`.
        files: alternatives; the first one that exists is used.
        beside: further files, all required.

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
            except EntryNotFoundError:  # also raised by the cache if the hub cannot be reached
                if file == files[-1]:
                    raise
        raise ValueError("no file was asked for")
    except Exception as error:  # the client has many classes of errors
        wanted = " and ".join([" or ".join(files), *beside])
        raise InputError(
            f"the weights could not be had from the hub ({first_line(error)})",
            path=name,
            remedy=f"Put its {wanted} into a folder, and name that folder.",
        ) from error


# Prefix -> function that finds the folder: (rest of the name, alternative files, required files) -> path.
SCHEMES: dict[str, Callable[[str, Sequence[str], Sequence[str]], str]] = {"hf": from_hub, "bundled": from_bundle}


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of a repository of the hub: `owner/name`, also with `@REVISION`."""
    return _HUB_ID.fullmatch(name) is not None


def _split(weights: str) -> tuple[str, str]:
    """Splits a name into a key of `SCHEMES`, or "" for a path, and the rest."""
    scheme, colon, rest = weights.partition(":")
    if colon and scheme in SCHEMES:
        return scheme, rest.removeprefix("//")
    is_repository = is_hub_id(weights) and not weights.endswith(SUFFIXES)
    return ("hf", weights) if is_repository and not storage.exists(weights) else ("", weights)


def seed_of(weights: str) -> int | None:
    """Returns SEED of `random:SEED`, 0 for `random`, and None for other weights.

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
    """Returns `weights` in a form that is valid in every process: paths become absolute."""
    named = weights == DEFAULT or seed_of(weights) is not None or _split(weights)[0]
    return weights if named else storage.absolute(weights)


def folder_of(source: str) -> str:
    """Returns the local folder of `bundled:NAME`; anything else (a path, an address, a hub id) as it is.

    Raises:
        InputError: see `bundled.from_bundle`.
    """
    scheme, rest = _split(source)
    return from_bundle(rest) if scheme == "bundled" else source


def find(weights: str, *, beside: Sequence[str] = ()) -> str:
    """Returns the path or address of a weights file, downloaded from the hub if necessary.

    Args:
        weights: any name except `default` and `random`.
        beside: further files required in the folder or repository; not checked for the path of a file.

    Raises:
        InputError: there is no such file or folder, a file is missing, or the hub cannot provide it.
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
            remedy="Give the path of a state dict, a hub id, 'bundled:NAME', 'default' or 'random:SEED'.",
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
    """Returns the identity of weights: equal texts mean equal weights, however they were named.

    Args:
        weights: as named by the user.
        published: identity of the `default` weights.
        digits: number of hex digits of a file's SHA-256.

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
    """Returns the first line of the error message without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
