"""Entry point of `jobs/*.py`: runs one raymotion command on the cluster that `ray job submit` uses."""

from __future__ import annotations

import os
import sys

from raymotion.cli.main import main


def run(*command: str) -> None:
    """Runs `raymotion COMMAND` with the script's arguments.

    RAYMOTION_ADDRESS defaults to `auto`, so that the command joins the cluster it was submitted to, and progress is
    printed as lines, which suit a log.
    """
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main([*command, "--progress", "lines", *sys.argv[1:]])
