"""Entry point for a cluster: `ray job submit -- python jobs/train.py RECIPE --out DIR` is `raymotion train` there."""

from __future__ import annotations

import os
import sys

from raymotion.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main(["train", "--progress", "lines", *sys.argv[1:]])
