"""Transfer of checkpoints: the Hugging Face hub, folders, and object stores.

Only the files of the checkpoint are copied, never others in the same folder, and never a pickle. The copy is read and
its fingerprint compared with the source.

`owner/name`, or explicitly `hf://owner/name`, is a repository of the hub; anything else is a folder or an address.
Write `./owner/name` for a folder below the current one. The token comes only from the environment (`HF_TOKEN`) or
from `hf auth login`.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from raymotion import storage
from raymotion.errors import AccessDenied, InputError, RunFailed
from raymotion.folders.lock import one_writer_of
from raymotion.models.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info
from raymotion.models.checkpoint_files import ANSWERS, CARD, CONFIG, DOMAIN, TRAINING, WEIGHTS, read_config
from raymotion.stores.local_files import disk_full, is_full, replaced
from raymotion.weights import HUB, REPOSITORY, first_line

SCHEME = "hf://"
HUB_ID = re.compile(REPOSITORY)


@dataclass(frozen=True)
class Transfer:
    """Source and target of a copy, and the copied checkpoint."""

    source: str
    target: str
    info: CheckpointInfo


def files_of(folder: str) -> list[str]:
    """Returns the names of the files of a checkpoint in the order of writing; config.json is last.

    Not every checkpoint has a sample of its training data.
    """
    return [WEIGHTS, *read_config(folder)["files"], TRAINING, CARD, DOMAIN, CONFIG]


def hub_id(place: storage.PathLike) -> str | None:
    """Returns the repository `owner/name` that `place` names, or None for a folder or another address."""
    text = str(place)
    if text.startswith(HUB):
        inner = text.removeprefix(HUB).strip("/")
        if not HUB_ID.fullmatch(inner):
            raise InputError("is not a repository of the hub", path=text, remedy="Write hf://owner/name.")
        return inner
    return text if HUB_ID.fullmatch(text) else None


def refuse_hub_id(folder: storage.PathLike) -> None:
    """Raises an `InputError` if `folder` does not exist and looks like a repository of the hub."""
    text = str(folder)
    if text.startswith(HUB) or (HUB_ID.fullmatch(text) and not storage.exists(text)):
        raise InputError(
            "no such checkpoint",
            path=folder,
            remedy=f"If it is a repository of the hub, fetch it first: raymotion pull {text} --out DIR.",
        )


def push(
    source: storage.PathLike,
    target: storage.PathLike,
    *,
    private: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> Transfer:
    """Copies the checkpoint in the folder `source` to `target`: a repository of the hub, a folder, or an address.

    Args:
        private: create the repository as private. An existing public one is an error, and nothing is uploaded.
        revision: branch of the repository; created if missing.
        overwrite: replace another checkpoint in the folder `target` (on the hub the old one stays in the history).

    Raises:
        InputError: `source` is not a checkpoint, `target` contains something else, or the hub refuses.
        RunFailed: the hub cannot be reached.
    """
    refuse_hub_id(source)
    repository = hub_id(target)
    if repository is None:
        _only_on_the_hub(private=private, revision=revision)
        return copy_checkpoint(source, target, overwrite=overwrite)
    _not_both(target, os.path.dirname(str(target)))
    info = read_checkpoint_info(source)
    with _hub(repository, "push"), _local(info.folder) as folder:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise InputError(
                "is public, and --private was asked for",
                path=HUB + repository,
                remedy="Make it private on the hub first. Nothing was uploaded.",
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files_of(folder),
            revision=revision,
            commit_message=f"{info.kind.name} {info.fingerprint}, by raymotion",
        )
    return Transfer(info.folder, _address(repository, revision), info)


def pull(
    source: storage.PathLike, out: storage.PathLike, *, revision: str | None = None, overwrite: bool = False
) -> Transfer:
    """Copies a checkpoint from the hub, a folder or an address to the folder `out`, and verifies it.

    Args:
        revision: branch, tag or commit of the repository.
        overwrite: replace another checkpoint in `out`.

    Raises:
        InputError: `source` is not a valid checkpoint, the hub refuses, or `out` contains something else.
        RunFailed: the hub cannot be reached.
    """
    repository = hub_id(source)
    if hub_id(out) is not None and str(out).startswith(HUB):
        raise InputError("is not a folder", path=out, remedy="To write to the hub, use `raymotion push`.")
    if repository is None:
        _only_on_the_hub(revision=revision)
        return copy_checkpoint(source, out, overwrite=overwrite)
    _not_both(source, str(source))
    address = _address(repository, revision)
    _check_free(out, None, overwrite)  # before anything is downloaded
    with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
        with _hub(repository, "pull"):
            from huggingface_hub import snapshot_download

            snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=[CONFIG])
        try:
            with _hub(repository, "pull"):
                snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=files_of(folder))
            return Transfer(address, storage.absolute(out), copy_checkpoint(folder, out, overwrite=overwrite).info)
        except InputError as error:
            inside = str(error.path or "").startswith(folder)
            if not inside:
                raise
            where = address + str(error.path).removeprefix(folder)
            raise InputError(error.reason, path=where, remedy="Pull one that `raymotion push` wrote.") from error


@one_writer_of("target", beside=True)
def copy_checkpoint(source: storage.PathLike, target: storage.PathLike, *, overwrite: bool = False) -> Transfer:
    """Copies a checkpoint between folders and addresses, atomically, and compares the fingerprints.

    Raises:
        InputError: `source` is not a checkpoint, `target` contains something else (or, without `overwrite`, another
            checkpoint), or the copy differs from the source.
    """
    refuse_hub_id(source)
    info = read_checkpoint_info(source)
    place = storage.absolute(target)
    if place == info.folder:
        raise InputError("is the checkpoint itself", path=target, remedy="Name another folder.")
    _check_free(place, info, overwrite)
    names = [name for name in files_of(info.folder) if storage.exists(storage.join(info.folder, name))]
    if storage.is_remote(place):
        storage.remove(storage.join(place, CONFIG))
        _copy(info.folder, place, names)
    else:
        with replaced(os.path.realpath(place)) as temporary:  # follows a link instead of replacing it
            _copy(info.folder, temporary, names)
    arrived = read_checkpoint_info(place)
    if arrived.fingerprint != info.fingerprint:
        raise InputError(
            f"what arrived has the fingerprint {arrived.fingerprint}, what was sent {info.fingerprint}",
            path=target,
            remedy="The source was written to meanwhile, or the store lost data: copy it again.",
        )
    return Transfer(info.folder, place, arrived)


def _copy(source: str, target: str, names: list[str]) -> None:
    for name in names:
        storage.write_bytes(storage.join(target, name), storage.require(storage.join(source, name)))


def _check_free(target: storage.PathLike, info: CheckpointInfo | None, overwrite: bool) -> None:
    """Raises an `InputError` unless `target` is empty or contains a checkpoint that may be replaced."""
    # Downloads leave `.cache/huggingface`. The whole folder is replaced, so it must contain no other files.
    names = [name for name in storage.list_entries(target) if name != ".cache"]
    names += [f".cache/{name}" for name in storage.list_entries(storage.join(target, ".cache"))]
    own = {*files_of(storage.absolute(target)), ANSWERS} if is_checkpoint(target) else set()
    foreign = sorted(set(names) - own - {".cache/huggingface"})
    if foreign:
        raise InputError(f"holds {foreign[0]}, which is not part of a checkpoint", path=target, remedy="Name another.")
    if not overwrite and is_checkpoint(target):
        there = read_checkpoint_info(target)
        if info is None or there.fingerprint != info.fingerprint:
            raise InputError(
                f"holds another checkpoint ({there.fingerprint})",
                path=target,
                remedy="Name another folder, or give --overwrite.",
            )


def _not_both(place: storage.PathLike, folder: str) -> None:
    """Raises an `InputError` if `place` could name both a repository and the existing `folder`: it is not guessed."""
    if not str(place).startswith(HUB) and storage.exists(storage.absolute(folder)):
        raise InputError(
            "could be a repository of the hub, and a folder here",
            path=place,
            remedy=f"Write {HUB}{place} for the hub, ./{place} for the folder.",
        )


def _only_on_the_hub(*, private: bool = False, revision: str | None = None) -> None:
    for option, given in (("--private", private), ("--revision", revision is not None)):
        if given:
            raise InputError(f"{option} is for repositories of the hub, not for folders", remedy="Leave it out.")


@contextlib.contextmanager
def _local(folder: str) -> Iterator[str]:
    """Yields a local folder of the checkpoint: `folder` itself, or a temporary copy."""
    if not storage.is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="raymotion-") as copy:
        _copy(folder, copy, [name for name in files_of(folder) if storage.exists(storage.join(folder, name))])
        yield copy


def _address(repository: str, revision: str | None) -> str:
    return HUB + repository + (f"@{revision}" if revision else "")


@contextlib.contextmanager
def _hub(repository: str, action: str) -> Iterator[None]:
    """Converts errors of the hub and of the network to errors with a message of one line."""
    from huggingface_hub import errors, utils

    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()  # its warnings would appear next to our message
    address = HUB + repository
    login = "Set HF_TOKEN, or log in with `hf auth login`."
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise AccessDenied(f"may not {action}: no token is set", path=address, remedy=login) from error
    except errors.GatedRepoError as error:
        raise AccessDenied("is gated", path=address, remedy=f"Ask for access on its page. {login}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError("has no such revision", path=address, remedy="Check --revision.") from error
    except errors.OfflineModeIsEnabled as error:
        raise RunFailed(f"{address}: HF_HUB_OFFLINE is set, so the hub is not asked. Unset it") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if isinstance(error, errors.RepositoryNotFoundError) and status != 403:
            # The hub answers 401 both for a missing repository and for one without permission.
            raise InputError(
                "no such repository, or it may not be seen", path=address, remedy=f"Check the name. {login}"
            ) from error
        if status in (401, 403):
            raise AccessDenied(f"may not {action} (the hub answers {status})", path=address, remedy=login) from error
        raise RunFailed(f"{address}: the hub answers {status}: {first_line(error)}") from error
    except errors.HFValidationError as error:
        raise InputError(f"is not the name of a repository ({first_line(error)})", path=address) from error
    except errors.LocalEntryNotFoundError as error:
        raise RunFailed(f"{address}: the hub could not be reached ({first_line(error.__cause__ or error)})") from error
    except Exception as error:
        if is_full(error):
            raise disk_full(tempfile.gettempdir(), error) from error
        # Compared by module name, because huggingface_hub's HTTP library depends on its version.
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests", "httpcore")):
            raise RunFailed(f"{address}: the hub could not be reached ({first_line(error)})") from error
        raise
