"""Runs `raymotion features embeddings` on a cluster: `ray job submit -- python jobs/embeddings.py SAMPLES ...`."""

from raymotion.cli.submitted import run

if __name__ == "__main__":
    run("features", "embeddings")
