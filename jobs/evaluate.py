"""Runs `raymotion evaluate` on a cluster: `ray job submit -- python jobs/evaluate.py MODEL SAMPLES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("evaluate")
