"""`raymotion label` on the cluster that the job was submitted to.

ray job submit -- python jobs/label.py SAMPLES --out DIR ...
"""

import os
import sys

from raymotion.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main(["label", "--progress", "lines", *sys.argv[1:]])
