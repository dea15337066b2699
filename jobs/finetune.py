"""Entry point for a cluster: `ray job submit -- python jobs/finetune.py STUDENT ...` is `raymotion finetune` there."""

from __future__ import annotations

import os
import sys

from raymotion.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main(["finetune", "--progress", "lines", *sys.argv[1:]])
