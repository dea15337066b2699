#!/bin/sh
# Runs benchmarks/gpu.py on a machine without a network, with the archive of benchmarks/gpu_pack.sh.
#
#   benchmarks/gpu_run.sh [options of gpu.py]
#
# PYTHON names the interpreter (default: python3), ARCHIVE the archive (default: build/gpu-pack.tar.xz).
set -eu
absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}
# What the caller names is looked for in the caller's folder, the default archive in the repository.
archive=${ARCHIVE:+$(absolute "$ARCHIVE")}
python=${PYTHON:-python3}
python=$(absolute "$(command -v "$python" || echo "$python")")
cd "$(dirname "$0")/.."
archive=${archive:-build/gpu-pack.tar.xz}
if [ ! -f "$archive" ]; then
    echo "error: $archive is not there. Make it where there is a network: benchmarks/gpu_pack.sh." >&2
    exit 2
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
tar -xJf "$archive" -C "$site"
PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 "$python" benchmarks/gpu.py "$@"
