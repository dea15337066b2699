"""Runs `raymotion study run` on a cluster: `ray job submit -- python jobs/study.py SPACES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("study", "run")
