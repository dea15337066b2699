"""Runs `raymotion features regions` on a cluster: `ray job submit -- python jobs/regions.py SAMPLES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("features", "regions")
