"""Runs `raymotion label` on a cluster: `ray job submit -- python jobs/label.py SAMPLES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("label")
