"""Runs `raymotion train` on a cluster: `ray job submit -- python jobs/train.py RECIPE ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("train")
