"""Keeps irrelevant output of Ray off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator

from raymotion import interrupts

# The driver's core worker prints this to file descriptor 2 for every actor pool of Ray Data, since its actors may
# always restart. If the arguments were lost, the shard would fail and be redone.
NOISE = (b"has constructor arguments in the object store and max_restarts > 0",)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Filters the lines of `NOISE` out of file descriptor 2 for the duration of the block.

    `sys.stderr` keeps its target, so a progress bar still detects the terminal. Does nothing if `sys.stderr` is not
    file descriptor 2 (in tests and notebooks).
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
        if not interrupts.stopping():  # otherwise `interrupts.mute` has replaced standard error
            python_stderr.flush()
            os.dup2(original, 2)  # closes our last writing end of the pipe, so that the thread ends
            thread.join(timeout=1)  # a child process may still hold another writing end
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
    """Silences Ray Data's messages (plan, path of its log) for the duration of the block."""
    loggers = [logging.getLogger(name) for name in ("ray.data", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # errors are raised as exceptions and reported once
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
