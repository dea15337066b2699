"""Registries of classes by name: raymotion's own, those of installed packages, and any given by import path.

To add a class, declare an entry point in a package, or name it as `my_package.module:Class`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from raymotion.errors import InputError, guess

T = TypeVar("T")
# Classes from outside of raymotion that this process uses, in the order of their import.
_foreign: dict[str, None] = {}


def foreign_classes() -> list[str]:
    """Returns `module:Class` of the classes from outside of raymotion that registries of this process have given."""
    return list(_foreign)


def _note(own: type) -> None:
    if not own.__module__.startswith(f"{__package__}."):
        _foreign[f"{own.__module__}:{own.__qualname__}"] = None


def classes_beside(base: str, file: str, suffix: str) -> dict[str, str]:
    """Returns name -> import path of the classes in the modules beside a base class, one in each module.

    The module `my_thing` holds the class `MyThing` + `suffix`, which is called `my-thing`.

    Args:
        base: `__name__` of the module of the base class, which is left out.
        file: its `__file__`.
    """
    package, _, own = base.rpartition(".")
    names = [module.name for module in pkgutil.iter_modules([str(Path(file).parent)]) if module.name != own]
    # Not `str.title`, which would make Flickr8K of flickr8k.
    classes = {name: "".join(map(str.capitalize, name.split("_"))) + suffix for name in names}
    return {name.replace("_", "-"): f"{package}.{name}:{own}" for name, own in classes.items()}


class Registry(Generic[T]):
    """Maps names to classes, given by import path (`module:Class`) and imported on first use.

    Args:
        what: noun for the classes in messages, e.g. `reader`.
        base: required base class; `object` for none.
        group: entry point group for installed packages, e.g. `raymotion.readers`.
        own: returns name -> import path of raymotion's own classes.
        variable: environment variable in which a user may list further classes as `module:Class`, separated by spaces.
    """

    def __init__(
        self, what: str, base: type[T], group: str, own: Callable[[], Mapping[str, str]], variable: str = ""
    ) -> None:
        self.what, self.base, self.group, self.own, self.variable = what, base, group, own, variable
        self.registered: dict[str, type[T]] = {}

    def register(self, name: str, found: type[T]) -> type[T]:
        """Registers a class under a name, in this process only.

        Raises:
            InputError: the name is taken by another class.
        """
        if name in self.places() or self.registered.get(name, found) is not found:
            raise InputError(f"a {self.what} is called {name} already", remedy="Give it another name.")
        self.registered[name] = found
        _note(found)
        return found

    def names(self) -> list[str]:
        """Returns all known names."""
        return list(dict.fromkeys([*self.places(), *self.registered, *self._listed()]))

    def _listed(self) -> dict[str, type[T]]:
        """Imports the classes that the environment variable lists."""
        found: dict[str, type[T]] = {}
        for place in os.environ.get(self.variable, "").split() if self.variable else []:
            own = self._import(place, path=self.variable)
            found[self.require_own_name(own, place, path=self.variable)] = own
        return found

    def require_own_name(self, own: type[T], place: str, *, path: object = None) -> str:
        """Returns the attribute `name` of a class.

        Raises:
            InputError: it has none, or another class has it too: that one would be used in its place.
        """
        name = getattr(own, "name", None)
        if not isinstance(name, str) or not name:
            raise InputError(f"{place} has no name", path=path, remedy='Give the class one: name = "..."')
        known = self.registered.get(name)
        if known is None and name in self.places():
            known = self._import(self.places()[name], path=path)
        if known is not None and known is not own:
            raise InputError(
                f"{place} is called {name!r}, as another {self.what} is",
                path=path,
                remedy="Give the class a name of its own.",
            )
        return name

    def places(self) -> dict[str, str]:
        """Returns name -> import path of every declared class: raymotion's own first, then installed packages'.

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
        """Returns the class registered as `name`, or imports it if `name` has the form `module:Class`.

        Args:
            path: the file that contains the name, for messages.
            may_import: False refuses `module:Class`, so that untrusted files never cause an import.

        Raises:
            InputError: the class is unknown, cannot be imported, or does not inherit `base`.
        """
        if name in self.registered:
            return self.registered[name]
        place = name if ":" in name and may_import else self.places().get(name)
        if place is None and name in (listed := self._listed()):
            return listed[name]
        if place is None:
            own = "name your own as my_package.module:Class" if may_import else f"install your own ({self.group})"
            if self.variable and not may_import:
                own += f" or list its class: export {self.variable}=my_package.module:Class"
            raise InputError(
                f"no {self.what} is called {name!r}",
                path=path,
                remedy=f"{guess(name, self.names()).lstrip()} There are {', '.join(self.names())}; {own}.".lstrip(),
            )
        return self._import(place, path=path)

    def _import(self, place: str, *, path: object) -> type[T]:
        module, _, attribute = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise InputError(
                f"the {self.what} {place} cannot be imported: {error}",
                path=path,
                remedy="Install its package, or put the folder that holds it on PYTHONPATH.",
            ) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise InputError(f"{place} is not a {self.what}", path=path, remedy=f"Inherit {self.base.__name__}.")
        _note(found)
        return found

    def read_each(self, values: Any, *, where: str, **more: Any) -> tuple[T, ...]:
        """Builds objects from an untrusted file: a list of mappings, each with the name of its class as `type`.

        Args:
            more: further arguments for `from_dict` of the classes.

        Raises:
            InputError: the list is invalid or empty, names an unknown type, or has duplicate names.
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
