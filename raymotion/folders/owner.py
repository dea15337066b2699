"""Identity of the process that owns a lock or a temporary folder."""

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
    """Identity of a process, from which others can determine whether it is still running.

    Attributes:
        token: random identifier of one claim.
        boot: boot ID of the kernel, unique to a machine and boot; empty if unknown.
        namespace: PID namespace, in which `pid` is valid; each container has its own.
        began: start time of the process, in ticks since boot.
        since: time of the claim, in seconds since the epoch.
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
        """Returns the identity of this process, with a new token."""
        command = shlex.join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])
        return cls(
            uuid.uuid4().hex, socket.gethostname(), _boot(), _namespace(), os.getpid(), _began(os.getpid()),
            command if len(command) <= 200 else command[:197] + "...", time.time(),
        )  # fmt: skip

    @classmethod
    def read(cls, data: bytes) -> Owner | None:
        """Parses `data`; returns None if it is not a valid owner, for example after a partial write."""
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
        """Whether the process belongs to the current boot of this machine; only then can its PID be looked up."""
        return bool(self.boot) and self.boot == _boot()

    def lives(self) -> bool | None:
        """Returns whether the process is running; None if that cannot be determined from here."""
        if not self.same_kernel or self.namespace != _namespace():
            return None
        if not Path("/proc/self").exists():
            return _answers(self.pid)
        # The PID may have been reused since.
        began = _began(self.pid)
        return began is not None and began == self.began

    def describe(self) -> str:
        """Returns a text with PID, host, start and command."""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on host {self.host} since {since} ({self.command})"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # On systems without /proc there are no containers that share the host's name.
        return "" if sys.platform.startswith("linux") else f"host {socket.gethostname()}"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """Returns when a process on this machine started, in ticks since boot (proc(5)); None if it has ended."""
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
