#!/bin/sh
# Packs what a machine without a network lacks, so that benchmarks/gpu_run.sh can run benchmarks/gpu.py there.
#
#   benchmarks/gpu_pack.sh [ARCHIVE]          # default: build/gpu-pack.tar.xz
#
# UV names uv (default: that of `make env`), MOST_BYTES the size that is refused.
#
# The machine without a network has Python 3.12 with PyTorch, torchvision, transformers, NumPy, SciPy, pandas, pyarrow, scikit-learn, safetensors
# and what these depend on. The archive holds the rest, in the versions of requirements.lock, for Linux on x86-64. Of Ray,
# the parts for Java and C++, RLlib, Serve and the dashboard's pages are left out.
set -eu
absolute() {
    case $1 in
    /*) echo "$1" ;;
    *) echo "$PWD/$1" ;;
    esac
}
# What the caller names is looked for in the caller's folder, the defaults in the repository.
archive=${1:+$(absolute "$1")}
uv=
if [ -n "${UV:-}" ]; then
    uv=$(absolute "$(command -v "$UV" || echo "$UV")")
fi
cd "$(dirname "$0")/.."
archive=${archive:-build/gpu-pack.tar.xz}
uv=${uv:-.venv/bin/uv}
most=${MOST_BYTES:-45000000}

# What `import raymotion` and its jobs, training and searches ask for, and Ray asks for by itself.
packages="ray msgpack jsonschema jsonschema-specifications referencing rpds-py attrs click filelock pydantic pydantic-core
annotated-types typing-inspection typing-extensions timm imbalanced-learn sklearn-compat threadpoolctl simplejpeg"

if [ ! -x "$uv" ]; then
    echo "error: $uv is not there. Make it with: make env, or name one with UV=/path/to/uv." >&2
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in $packages; do
    grep "^$name==" requirements.lock >>"$work/wanted" || {
        echo "error: requirements.lock names no $name" >&2
        exit 2
    }
done
"$uv" pip install --quiet --no-deps --only-binary :all: --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
    --target "$work/site" --requirement "$work/wanted"
cd "$work/site"
# Scripts name the Python of this machine, and the notes of the installer the place that the wheels came from.
rm -rf bin .lock ray/jars ray/rllib ray/serve ray/dashboard/client ray/cpp
find . -name __pycache__ -prune -exec rm -rf {} +
find . \( -name direct_url.json -o -name uv_cache.json -o -name INSTALLER -o -name REQUESTED \) -delete
cd - >/dev/null
mkdir -p "$(dirname "$archive")"
# Of the same files the same archive, whoever packs it and when.
tar -C "$work/site" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . | xz -3 -T0 >"$work/archive"
bytes=$(wc -c <"$work/archive")
if [ "$bytes" -ge "$most" ]; then
    echo "error: the archive has $bytes bytes, and $most is the most" >&2
    exit 1
fi
mv "$work/archive" "$archive"
echo "$archive: $bytes bytes"
