"""Classes found by a name: raymotion's own, those of installed packages, and any that a user names by its place.

Adding one touches no other file: a package declares an entry point, or a user names `my_package.module:Class`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from raymotion.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and the places (`module:Class`) of their classes, which are imported when they are asked for.

    Args:
        what: the classes are called in messages, as `reader`.
        base: class that they all inherit; `object` where none is asked for.
        group: of the entry points by which installed packages add theirs, as `raymotion.readers`.
        own: gives names and places of raymotion's own.
    """

    def __init__(self, what: str, base: type[T], group: str, own: Callable[[], Mapping[str, str]]) -> None:
        self.what, self.base, self.group, self.own = what, base, group, own
        self.registered: dict[str, type[T]] = {}

    def register(self, name: str, found: type[T]) -> type[T]:
        """Adds a class of this process under a name.

        Raises:
            InputError: another class has the name.
        """
        if name in self.places() or self.registered.get(name, found) is not found:
            raise InputError(f"a {self.what} is called {name} already", remedy="Give it another name.")
        self.registered[name] = found
        return found

    def names(self) -> list[str]:
        """Of everything that is known here."""
        return [*self.places(), *self.registered]

    def places(self) -> dict[str, str]:
        """The place of each registered class by its name: raymotion's own first, then those of installed packages.

        Raises:
            InputError: two classes have the same name.
        """
        found = dict(self.own())
        for point in entry_points(group=self.group):
            if found.setdefault(point.name, point.value) != point.value:
                raise InputError(
                    f"two {self.what}s are called {point.name!r}: {found[point.name]} and {point.value}",
                    remedy="Uninstall one of the packages, or rename the entry point.",
                )
        return found

    def get(self, name: str, *, path: object = None, may_import: bool = True) -> type[T]:
        """The class that is registered as `name`, or that stands at `name` where it has the form `module:Class`.

        Args:
            path: of the file that names it, for messages.
            may_import: False: `module:Class` is refused. What is named by a file from somebody else is never imported.

        Raises:
            InputError: there is none, it cannot be imported, or it does not inherit `base`.
        """
        if name in self.registered:
            return self.registered[name]
        place = name if ":" in name and may_import else self.places().get(name)
        if place is None:
            own = "name your own as my_package.module:Class" if may_import else f"install your own ({self.group})"
            raise InputError(
                f"no {self.what} is called {name!r}", path=path, remedy=f"There are {', '.join(self.names())}; {own}."
            )
        module, _, attribute = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"the {self.what} {name} cannot be imported: {error}", path=path) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise InputError(f"{place} is not a {self.what}", path=path, remedy=f"Inherit {self.base.__name__}.")
        return found

    def read_each(self, values: Any, *, where: str, **more: Any) -> tuple[T, ...]:
        """What a file from somebody else describes: a list of mappings, each with the name of its class as `type`.

        Args:
            more: what `from_dict` of the classes takes besides the mapping and `where`.

        Raises:
            InputError: it is not such a list, it is empty, it names a type that is not known, or one name twice.
        """
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise InputError(f"names no {self.what}s", path=where)
        found: list[Any] = []
        for value in values:
            kind = value.get("type") if isinstance(value, Mapping) else None
            if not isinstance(kind, str):
                raise InputError(f"has an {self.what} without a type", path=where)
            own: Any = self.get(kind, path=where, may_import=False)
            found.append(own.from_dict(value, where=where, **more))
        names = [own.name for own in found]
        if len(set(names)) != len(names):
            raise InputError(f"has two {self.what}s of one name ({', '.join(names)})", path=where)
        return tuple(found)
