"""Runs `raymotion tune` on a cluster: `ray job submit -- python jobs/tune.py RECIPE --space FILE ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("tune")
