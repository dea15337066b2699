"""Runs `raymotion attack pixels` on a cluster: `ray job submit -- python jobs/attack_pixels.py SAMPLES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("attack", "pixels")
