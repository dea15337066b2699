"""Finds, suspends and kills the processes of a private Ray instance without Ray's help."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import psutil

INSTALL_FAILURE_HANDLER = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"


class RayProcesses:
    """Descendants of this process that were started after this object was created."""

    def __init__(self) -> None:
        self._others = set(self._children())
        self._seen: set[psutil.Process] = set()

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process().children(recursive=True)
        return []

    def look(self) -> set[psutil.Process]:
        """Returns the current processes and all seen before, since children of an ended parent are not found again."""
        self._seen.update(process for process in self._children() if process not in self._others)
        return self._seen

    def freeze(self) -> None:
        """Suspends all of them: no shard starts or ends, nothing is printed, and the cores are free."""
        frozen: set[psutil.Process] = set()
        while fresh := self.look() - frozen:
            for process in fresh:
                with contextlib.suppress(psutil.Error):
                    process.suspend()
            frozen |= fresh

    def kill(self) -> None:
        """Kills all of them, suspended first so that none can start an unseen child."""
        self.freeze()
        self.kill_seen()

    def kill_seen(self) -> None:
        """Kills those that `look` has seen and that are still running."""
        for process in self._seen:
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def starting_ray() -> Iterator[None]:
    """Makes `ray.init` start its processes in a separate session and keeps our signal handlers.

    Ray starts its processes in the group of this one, so Ctrl-C, `timeout` and a closing terminal signal them too: they
    then die in arbitrary order and print errors. `ray.init` also replaces the handler of SIGTERM twice, in Python and
    in its C++ core, whose handler prints a stack trace and aborts. This uses Ray's internals; versions of Ray without
    them keep their default behaviour.
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

    # Ray's core installs its handler once per process: do it now instead of in the middle of `ray.init`.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(ray._raylet.__file__)[INSTALL_FAILURE_HANDLER](None, ctypes.c_bool(False))
    interrupts.reinstall()
    services.ConsolePopen, utils.set_sigterm_handler = in_own_session, lambda handler: None
    try:
        yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = plain, sigterm
        interrupts.reinstall()
