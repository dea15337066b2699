"""The entry point of `jobs/*.py`: one command of raymotion, on the cluster that `ray job submit` runs it on."""

from __future__ import annotations

import os
import sys

from raymotion.cli.main import main


def run(*command: str) -> None:
    """Runs `raymotion COMMAND` with the script's arguments.

    RAYMOTION_ADDRESS is `auto` unless it is set, so that the command joins the cluster that it was submitted to, and
    progress comes as lines, which a log can hold.
    """
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main([*command, "--progress", "lines", *sys.argv[1:]])
