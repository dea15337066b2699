"""The processes of a Ray that this process has started: found, stopped and ended without Ray's own help."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import psutil

INSTALL_FAILURE_HANDLER = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"


class RayProcesses:
    """Every process that descends from this one and was started after this object was made."""

    def __init__(self) -> None:
        self._others = set(self._children())
        self._seen: set[psutil.Process] = set()

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process().children(recursive=True)
        return []

    def look(self) -> set[psutil.Process]:
        """Those that there are now, and all that were seen before: when a parent ends, its children are nobody's."""
        self._seen.update(process for process in self._children() if process not in self._others)
        return self._seen

    def freeze(self) -> None:
        """Suspends them all: no shard begins or ends, nothing complains, and the cores are free."""
        frozen: set[psutil.Process] = set()
        while fresh := self.look() - frozen:
            for process in fresh:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            frozen |= fresh

    def kill(self) -> None:
        """Ends them all at once. Frozen before, so that none has a child that is not known."""
        self.freeze()
        self.kill_seen()

    def kill_seen(self) -> None:
        """Ends those that `look` has seen and that still live."""
        for process in self._seen:
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def starting_ray() -> Iterator[None]:
    """For the length of `ray.init`: its processes get a session of their own, and the signals stay ours.

    Ray starts its processes in the group of this one, where Ctrl-C, `timeout` and a terminal that closes signal them
    too: they end each other's work in no order, and say so. `ray.init` takes SIGTERM twice, once for Python and once
    for a handler of its C++ core that prints a stack trace and aborts. These are Ray's internals: where a version has
    none of them, things are as Ray makes them.
    """
    import ray
    from ray._private import services, utils

    from raymotion import interrupts

    plain, sigterm = getattr(services, "ConsolePopen", None), getattr(utils, "set_sigterm_handler", None)
    if not interrupts.active() or plain is None or sigterm is None:
        yield
        return

    def in_own_session(*arguments: Any, **options: Any) -> Any:
        return plain(*arguments, start_new_session=True, **options)

    # Ray's core installs its handler once in a process: now, instead of in the middle of `ray.init`.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(ray._raylet.__file__)[INSTALL_FAILURE_HANDLER](None, ctypes.c_bool(False))
    interrupts.reinstall()
    services.ConsolePopen, utils.set_sigterm_handler = in_own_session, lambda handler: None
    try:
        yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = plain, sigterm
        interrupts.reinstall()
