"""Keeps lines of Ray's C++ core off the terminal that mean nothing to a user."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator

from raymotion import interrupts

# Printed by the driver's core worker, straight to file descriptor 2, with every actor pool of Ray Data, whose
# actors always may restart; lost arguments would fail the shard, which is done again.
NOISE = (b"has constructor arguments in the object store and max_restarts > 0",)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """File descriptor 2 without the lines of `NOISE`, for the length of the block.

    Python's own `sys.stderr` goes on writing to where it did: a progress bar still sees its terminal. Nothing
    changes where `sys.stderr` is not file descriptor 2 (in tests, in notebooks).
    """
    try:
        plain = sys.stderr.fileno() == 2
    except (AttributeError, OSError, io.UnsupportedOperation):
        plain = False
    if not plain:
        yield
        return
    original, python_stderr = os.dup(2), sys.stderr
    reader, writer = os.pipe()
    sys.stderr = os.fdopen(
        os.dup(original), "w", buffering=1, encoding=python_stderr.encoding, errors="backslashreplace"
    )
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_pump, args=(reader, original), daemon=True)
    thread.start()
    try:
        yield
    finally:
        if not interrupts.stopping():  # then standard error is muted, but for `sys.stderr`
            python_stderr.flush()
            os.dup2(original, 2)  # closes the last writing end of ours, so that the thread ends
            thread.join(timeout=1)  # a process that we started may still hold another
            sys.stderr.flush()
            sys.stderr = python_stderr


def _pump(reader: int, target: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as stream, os.fdopen(target, "wb", buffering=0) as out:
        rest = b""
        while chunk := stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not any(noise in line for noise in NOISE):
                    with contextlib.suppress(OSError):
                        out.write(line + b"\n")
        if rest:
            with contextlib.suppress(OSError):
                out.write(rest)


@contextlib.contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Ray Data prints its plan and its log's place for each run; ours prints progress and a summary."""
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # errors come back as exceptions, and are told once
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
