"""A process, named so that others can tell whether it still runs: what locks and temporary folders say of theirs."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process, named so that others can tell whether it still runs.

    Attributes:
        token: random, for this one claim.
        boot: of the kernel that runs it; two machines never share one. Empty where the system does not tell.
        namespace: its PID means something only there: containers of one machine have one each.
        began: when the process started, in ticks since boot.
        since: seconds since the epoch.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    began: int | None
    command: str
    since: float

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        command = shlex.join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])
        return cls(
            uuid.uuid4().hex, socket.gethostname(), _boot(), _namespace(), os.getpid(), _began(os.getpid()),
            command if len(command) <= 200 else command[:197] + "...", time.time(),
        )  # fmt: skip

    @classmethod
    def read(cls, data: bytes) -> Owner | None:
        """The owner that `data` names; None if it names none, as a torn write does."""
        try:
            found = json.loads(data)
            owner = cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        texts = (owner.token, owner.host, owner.boot, owner.namespace, owner.command)
        whole = type(owner.pid) is int and owner.pid > 0 and isinstance(owner.since, int | float)
        return owner if whole and all(isinstance(text, str) for text in texts) else None

    @property
    def same_kernel(self) -> bool:
        """Whether it runs, or ran, since this machine was last started: only then its process id can be looked up."""
        return bool(self.boot) and self.boot == _boot()

    def lives(self) -> bool | None:
        """Whether the process runs; None if that cannot be seen from here."""
        if not self.same_kernel or self.namespace != _namespace():
            return None
        if not Path("/proc/self").exists():
            return _answers(self.pid)
        # The number may have been given to another process since.
        began = _began(self.pid)
        return began is not None and began == self.began

    def describe(self) -> str:
        """Process, host, since when, and its command."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on host {self.host} since {since} ({self.command})"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # A system without /proc runs no containers that would share the host's name.
        return "" if sys.platform.startswith("linux") else f"host {socket.gethostname()}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When a process of this machine started, in ticks since boot (proc(5)); None if it has ended."""
    try:
        state, *fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
