"""Runs `raymotion finetune` on a cluster: `ray job submit -- python jobs/finetune.py MODEL ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("finetune")
