"""Entry point for a cluster: `ray job submit -- python jobs/study.py SPACES --out DIR` runs `raymotion study run`."""

from __future__ import annotations

import os
import sys

from raymotion.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main(["study", "run", "--progress", "lines", *sys.argv[1:]])
