"""Mapping of the labels of one vocabulary to those of another, read from a YAML file.

    from: socratis-29
    to: emotic-26
    note: caveats of comparing the two
    map:
      happy: [Happiness]
      joy: [Happiness]
      neutral: null

Every label of `from` is listed; null means that `to` has no equivalent. A category with several labels gets the highest
of their probabilities, and is chosen if one of them is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.config import read_yaml, recipes_folder
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.vocabulary import Vocabulary


@dataclass(frozen=True)
class LabelMapping:
    """A validated mapping.

    Attributes:
        path: the file as given, or the name of a bundled mapping; None for two equal vocabularies.
        categories: the labels of `target` that have a source, in its order.
        sources: for each category, the positions in `source` that map to it; never empty.
        unmapped: labels of `source` that map to nothing.
        unsaid: labels of `target` without a source, which the audit leaves out.
    """

    path: str | None
    note: str | None
    source: Vocabulary
    target: Vocabulary
    categories: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    unmapped: tuple[str, ...]
    unsaid: tuple[str, ...]

    @property
    def positions(self) -> list[int]:
        """The position of each category in `target`."""
        return [self.target.index(name) for name in self.categories]

    def probabilities(self, matrix: np.ndarray) -> np.ndarray:
        """Maps (n, len(source)) to (n, len(categories)): the highest probability of each category's labels."""
        return np.stack([matrix[:, list(own)].max(axis=1) for own in self.sources], axis=1)

    def chosen(self, mask: np.ndarray) -> np.ndarray:
        """Maps (n, len(source)) bool to (n, len(categories)) bool: whether any of a category's labels is chosen."""
        return np.stack([mask[:, list(own)].any(axis=1) for own in self.sources], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the file and the labels of each category, for JSON."""
        return {
            "path": self.path,
            "from": self.source.name,
            "to": self.target.name,
            "note": self.note,
            "map": {
                name: [self.source.labels[i] for i in own]
                for name, own in zip(self.categories, self.sources, strict=True)
            },
            "unmapped": list(self.unmapped),
            "unsaid": list(self.unsaid),
        }


def identity(vocabulary: Vocabulary) -> LabelMapping:
    """Returns the mapping of every label to itself."""
    own = tuple((i,) for i in range(len(vocabulary)))
    return LabelMapping(None, None, vocabulary, vocabulary, vocabulary.labels, own, (), ())


def find_mapping(name: str) -> str:
    """Returns an existing path as given, else the file of a bundled mapping: NAME or `recipes/mappings/NAME.yaml`."""
    if storage.is_remote(name) or storage.exists(name):
        return name
    shipped = recipes_folder() / "mappings" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if Path(name).parent in (Path("."), Path("recipes/mappings")) and shipped.is_file():
        return str(shipped)
    raise InputError("no such mapping", path=name, remedy=f"Give a file, or one of {', '.join(shipped_mappings())}.")


def shipped_mappings() -> list[str]:
    """Returns the names of the bundled mappings."""
    return sorted(path.stem for path in (recipes_folder() / "mappings").glob("*.yaml"))


def choose_mapping(path: str | None, source: Vocabulary, target: Vocabulary, *, here: str, there: str) -> LabelMapping:
    """Returns the mapping in the file `path`; without one, the vocabularies must be the same.

    Args:
        here, there: owners of `source` and `target`, for messages.
    """
    if path is not None:
        found = find_mapping(path)
        mapping = read_mapping(found, source, target)
        # A bundled mapping is recorded by name, without the installation path.
        return mapping if found == path else replace(mapping, path=Path(found).stem)
    try:
        source.require_same(target, here=here, there=there)
    except VocabularyMismatch as error:
        name = f"{source.name}-to-{target.name}"
        known = f" (raymotion brings {name})" if name in shipped_mappings() else ""
        raise VocabularyMismatch(str(error), remedy=f"Say with --mapping FILE what means what{known}.") from error
    return identity(source)


def read_mapping(
    path: storage.PathLike,
    source: Vocabulary,
    target: Vocabulary,
    *,
    here: str = "labelled data set",
    there: str = "human labels",
) -> LabelMapping:
    """Reads a mapping and checks it against both vocabularies.

    Args:
        here, there: owners of `source` and `target`, for messages.

    Raises:
        InputError: it is for other vocabularies, omits a label of `source`, names an unknown label, or maps nothing.
    """
    value = read_yaml(path)
    unknown = sorted(set(value) - {"from", "to", "map", "note"})
    if unknown:
        raise InputError(f"has an unknown entry {unknown[0]!r}", path=path, remedy="There are: from, to, note, map.")
    for key, vocabulary, whose in (("from", source, here), ("to", target, there)):
        if value.get(key) != vocabulary.name:
            raise InputError(
                f"maps {key} {value.get(key)!r}, the vocabulary of the {whose} is {vocabulary.name}",
                path=path,
                remedy="Use another mapping.",
            )
    table = value.get("map")
    if not isinstance(table, Mapping):
        raise InputError("has no `map:` of labels", path=path)
    strange = [str(name) for name in table if name not in source]
    forgotten = [name for name in source.labels if name not in table]
    if strange:
        raise InputError(f"maps {', '.join(strange[:5])}, which {source.name} does not have", path=path)
    if forgotten:
        raise InputError(
            f"does not list {', '.join(forgotten[:5])}" + (f" and {len(forgotten) - 5} more" * (len(forgotten) > 5)),
            path=path,
            remedy="List every label; null says that it means none of the others.",
        )
    sources: dict[str, list[int]] = {name: [] for name in target.labels}
    for label, categories in table.items():
        if categories is None:
            continue
        if not isinstance(categories, list) or not categories or any(not isinstance(c, str) for c in categories):
            raise InputError(f"{label} is mapped to {categories!r}, not to a list of labels or null", path=path)
        if len(set(categories)) != len(categories):
            raise InputError(f"{label} is mapped to one label twice", path=path)
        for category in categories:
            if category not in target:
                raise InputError(f"{label} is mapped to {category!r}, which {target.name} does not have", path=path)
            sources[category].append(source.index(label))
    said = [name for name, own in sources.items() if own]
    if not said:
        raise InputError("maps no label to anything", path=path)
    note = value.get("note")
    return LabelMapping(
        path=str(path),
        note=str(note).strip() if note else None,
        source=source,
        target=target,
        categories=tuple(said),
        sources=tuple(tuple(sorted(sources[name])) for name in said),
        unmapped=tuple(name for name in source.labels if table[name] is None),
        unsaid=tuple(name for name, own in sources.items() if not own),
    )
