"""`raymotion features embeddings` on the cluster that the job was submitted to.

ray job submit -- python jobs/embeddings.py SAMPLES --out DIR ...
"""

import os
import sys

from raymotion.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("RAYMOTION_ADDRESS", "auto")
    main(["features", "embeddings", "--progress", "lines", *sys.argv[1:]])
