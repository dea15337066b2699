"""Lists the images below a folder, counts the other files by reason, and matches file names from annotations."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from raymotion import storage
from raymotion.errors import InputError

# All file extensions of the formats in `decode.FORMATS`.
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".bmp", ".dib")


@dataclass
class FolderContent:
    """Images in a folder and its subfolders, and counts of the files left out.

    Attributes:
        base: the folder, absolute.
        pictures: paths of the images relative to `base`, with '/', sorted.
        others: number of files with each non-image extension ('' for none).
        hidden: files with a name, or in a folder with a name, that begins with a dot.
        unreadable_names: images with names that are not UTF-8.
        dangling: broken links.
        repeated: links to folders that are already read elsewhere, or that contain the folder itself; not followed.
        special: pipes, sockets and devices.
        aliases: names of the `repeated` links -> names under which their folders are read.
    """

    base: str
    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unreadable_names: int = 0
    dangling: int = 0
    repeated: int = 0
    special: int = 0
    aliases: dict[str, str] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """Returns the address of the file `name`; keys of a store are used verbatim."""
        return storage.child(self.base, name)

    def notes(self) -> list[str]:
        """Returns a line for each reason for leaving files out."""
        kinds = ", ".join(f"{kind or 'no extension'} {count:,}" for kind, count in self.others.most_common(4))
        kinds += " ..." if len(self.others) > 4 else ""
        told = (
            (self.others.total(), f"files without a picture's extension left out ({kinds})"),
            (self.hidden, "hidden files left out"),
            (self.unreadable_names, "pictures left out, whose names are not UTF-8"),
            (self.dangling, "links that lead nowhere left out"),
            (self.repeated, "links to folders that are read already left out"),
            (self.special, "pipes, sockets and devices left out"),
        )
        return [f"{count:,} {what}" for count, what in told if count]


def list_pictures(folder: storage.PathLike) -> FolderContent:
    """Lists the images in `folder` and its subfolders; a missing folder is empty.

    Links are followed. A folder with several links is read once, under its own name if it lies below `folder`; cycles
    are not followed.

    Raises:
        AccessDenied: a folder may not be listed.
        InputError: `folder` is a file.
    """
    content = FolderContent(storage.absolute(folder))
    with storage.explained(folder, "list it"):
        try:
            for name in storage.list_tree(folder) if storage.is_remote(folder) else _walk(content):
                _sort_in(name, content)
        except NotADirectoryError as error:
            raise InputError("is a file, not a folder", path=folder, remedy="Name another folder.") from error
    content.pictures.sort()
    return content


def _sort_in(name: str, content: FolderContent) -> None:
    extension = posixpath.splitext(name)[1].lower()
    if any(part.startswith(".") for part in name.split("/")):
        content.hidden += 1
    elif extension not in EXTENSIONS:
        content.others[extension if is_unicode(extension) else ""] += 1
    elif not is_unicode(name):
        content.unreadable_names += 1
    else:
        content.pictures.append(name)


def _walk(content: FolderContent) -> Iterator[str]:
    """Yields relative names of all files: first those in real folders, then those in linked folders."""
    root = os.path.realpath(content.base)
    seen: dict[str, str] = {}
    folders = [""]
    links: list[str] = []
    while folders or links:
        if folders:
            inner = folders.pop()
        else:
            links.sort(reverse=True)
            inner = links.pop()
        place = os.path.join(content.base, inner)
        real = os.path.realpath(place)
        # A folder that contains the root would lead into a cycle.
        if real in seen or (inner and (root + os.sep).startswith(real.rstrip(os.sep) + os.sep)):
            content.repeated += 1
            if real in seen:
                content.aliases[inner] = seen[real]
            continue
        seen[real] = inner
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except FileNotFoundError:
            if inner:
                raise
            return
        for entry in entries:
            name = f"{inner}/{entry.name}" if inner else entry.name
            if entry.is_symlink() and not os.path.exists(entry.path):
                content.dangling += 1
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(name)
            elif entry.is_file():
                yield name
            else:
                content.special += 1


def extension_of(data: bytes, name: str = "") -> str:
    """Returns the extension of a picture's format, from its first bytes; else that of `name`, which may have none."""
    for mark, extension in ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"BM", ".bmp")):
        if data.startswith(mark):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    found = posixpath.splitext(name)[1].lower()
    return found if found in EXTENSIONS else ""


def is_unicode(text: str) -> bool:
    """Returns whether `text` is valid Unicode; file names can be any bytes, and JSON can contain lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class FileNames:
    """Finds the file for a name in an annotation file.

    Tries an exact match, then a match of the normalized path (`./a.jpg`, `//`, the full path), then a match that
    ignores outer blanks, the form of accents (NFC, NFD) and the direction of slashes, if it is unique.
    """

    def __init__(self, files: Iterable[str], base: str = "", aliases: Mapping[str, str] | None = None) -> None:
        self.files = set(files)
        self.base = base.rstrip("/") + "/"
        self.aliases = dict(aliases or {})
        self._loose: dict[str, list[str]] | None = None
        self._folded: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] | None = None
        self.ambiguous: set[str] = set()

    def find(self, name: str) -> str | None:
        """Returns the file for `name`; None if there is none or several match (then adds `name` to `ambiguous`)."""
        if name in self.files:
            return name
        tidy = self._tidy(name)
        if tidy in self.files:
            return tidy
        for link, own in self.aliases.items():
            if tidy.startswith(link + "/") and (aliased := (own + tidy[len(link) :]).lstrip("/")) in self.files:
                return aliased
        if self._loose is None:
            self._loose, self._folded = self._by(loosened), self._by(lambda text: loosened(text).casefold())
        found = self._loose.get(loosened(tidy), [])
        if len(found) > 1:
            self.ambiguous.add(name)
        return found[0] if len(found) == 1 else None

    def other_case(self, name: str) -> str | None:
        """Returns a file whose name differs from `name` only in case, or None; call it after `find` returned None."""
        return next(iter(self._folded.get(loosened(self._tidy(name)).casefold(), [])), None)

    def find_alike(self, name: str) -> str | None:
        """Returns the file for `name` as `find` does, else the only one that differs in case, extension or folder.

        A folder in `name` has to be the end of the file's. Of files that differ in their extensions, the one that is
        named is meant.
        """
        exact = self.find(name)
        if exact is not None:
            return exact
        if self._stems is None:
            self._stems = self._by(lambda text: posixpath.basename(_stem(text)))
        stem = _stem(self._tidy(name))
        found = [own for own in self._stems.get(posixpath.basename(stem), []) if f"/{_stem(own)}".endswith(f"/{stem}")]
        same = [own for own in found if own.casefold().endswith(loosened(name).casefold())]
        chosen = same or found
        if len(chosen) > 1:
            self.ambiguous.add(name)
        return chosen[0] if len(chosen) == 1 else None

    def _tidy(self, name: str) -> str:
        text = name.strip() if name.strip().startswith(self.base) else name
        text = text.removeprefix(self.base) if len(self.base) > 1 else text
        return posixpath.normpath(text) if text else text

    def _by(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for name in sorted(self.files):
            table.setdefault(key(name), []).append(name)
        return table


def _stem(name: str) -> str:
    """Returns a path without a picture's extension, in lower case; other dots belong to the name."""
    text = loosened(name).casefold()
    root, extension = posixpath.splitext(text)
    return root.rstrip() if extension in EXTENSIONS else text


def loosened(name: str) -> str:
    """Normalizes blanks, accents and slashes in `name`, which other programs often change."""
    text = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    return posixpath.normpath(text) if text else text
