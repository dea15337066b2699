#!/bin/sh
# Runs benchmarks/gpu.py on a machine without a network, with the archive of benchmarks/gpu_pack.sh.
#
#   benchmarks/gpu_run.sh [options of gpu.py]
#
# PYTHON names the interpreter (default: python3), ARCHIVE the archive (default: build/gpu-pack.tar.xz).
set -eu
cd "$(dirname "$0")/.."
archive=${ARCHIVE:-build/gpu-pack.tar.xz}
if [ ! -f "$archive" ]; then
    echo "error: $archive is not there. Make it where there is a network: benchmarks/gpu_pack.sh." >&2
    exit 2
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
tar -xJf "$archive" -C "$site"
PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 "${PYTHON:-python3}" benchmarks/gpu.py "$@"
