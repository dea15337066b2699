"""Signals, in processes of their own: each ends with one line and its code, whatever the main thread does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest

from raymotion import interrupts

START = """
import ctypes, os, sys, threading, time
from raymotion import interrupts
print("ready", flush=True)
"""
DEADLOCK = """
lock = ctypes.create_string_buffer(64)
def hang():
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)  # the second time it waits for itself, deaf to signals
"""


def stopped(
    code: str, signals: Sequence[int], *, pause: float = 0.0, ignored: Sequence[int] = ()
) -> tuple[int, list[str], list[str], float]:
    """Runs `code` until it prints `go`, sends it the signals; code, lines of both streams, seconds that it took."""

    def dispositions() -> None:  # a shell's background job ignores SIGINT, and so would its children
        for number in interrupts.SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", START + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=dispositions,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "go\n":
        assert process.poll() is None
    time.sleep(0.2)  # it is on its way to where it hangs
    started = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    out, err = process.communicate(timeout=30)
    return process.returncode, out.splitlines(), err.splitlines(), time.monotonic() - started


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_and_ends_with_one_line_and_its_code(number, code):
    body = """
with interrupts.handled():
    try:
        print("go", flush=True)
        time.sleep(30)
    finally:
        os.write(2, b"a library explains at length\\n")
        print("unwound", interrupts.stopping())
"""
    assert stopped(body, [number])[:3] == (code, ["unwound True"], [interrupts.LINE])


@pytest.mark.parametrize("deaf", ["hang()", "swallow()"])
def test_a_main_thread_that_does_not_unwind_is_ended(deaf):
    """It is in a C call that no signal interrupts, or in a library that catches what the signal raises."""
    body = (
        DEADLOCK
        + f"""
interrupts.GRACE_SECONDS = 0.3
def swallow():
    while True:
        try: time.sleep(30)
        except BaseException: pass
with interrupts.handled(), interrupts.on_signal(lambda: print("first")), interrupts.before_exit(lambda: print("last")):
    with interrupts.on_forced_end(lambda: print("forced")), interrupts.on_forced_end(lambda: 1 / 0):
        print("go", flush=True)
        {deaf}
"""
    )
    code, out, err, took = stopped(body, [signal.SIGTERM])
    assert (code, out, err) == (143, ["first", "forced", "last"], [interrupts.LINE])
    assert 0.3 <= took < 5


def test_a_second_signal_ends_at_once_and_one_that_is_sent_twice_counts_once():
    body = (
        DEADLOCK + 'interrupts.GRACE_SECONDS = 1.5\nwith interrupts.handled():\n    print("go", flush=True)\n    hang()'
    )
    code, _, err, took = stopped(body, [signal.SIGINT, signal.SIGINT], pause=0.35)
    assert (code, err) == (130, [interrupts.LINE]) and took < 1.4
    code, _, err, took = stopped(body, [signal.SIGINT, signal.SIGINT])  # as `timeout` sends it, and a terminal
    assert (code, err) == (130, [interrupts.LINE]) and took >= 1.4


def test_what_an_interrupted_library_makes_of_it_is_not_told():
    body = """
with interrupts.handled():
    threading.Thread(target=lambda: (time.sleep(0.3), 1 / 0)).start()
    print("go", flush=True)
    try: time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(0.4)
        raise RuntimeError("the actor died unexpectedly")
"""
    assert stopped(body, [signal.SIGINT])[:3] == (130, [], [interrupts.LINE])


def test_a_signal_that_the_process_ignores_stays_ignored():
    body = """
import signal
with interrupts.handled():
    signal.signal(signal.SIGHUP, lambda *_: None)  # as a library does
    interrupts.reinstall()
    print("go", flush=True)
    time.sleep(0.5)
    print("went on")
"""
    assert stopped(body, [signal.SIGHUP], ignored=[signal.SIGHUP])[:3] == (0, ["went on"], [])


def test_everything_is_as_before_when_no_signal_came():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.handled():
        assert interrupts.active() and not interrupts.stopping()
        with interrupts.handled():  # inside itself it does nothing
            assert interrupts.active()
        assert interrupts.active()
    assert not interrupts.active()
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_that_is_not_the_main_one_leaves_signals_alone():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_active_inside()))
    thread.start()
    thread.join()
    assert seen == [False]


def _active_inside() -> bool:
    with interrupts.handled():
        return interrupts.active()


def test_an_error_of_a_command_leaves_the_block_as_itself():
    with pytest.raises(ZeroDivisionError), interrupts.handled():
        os.getpid() / 0
