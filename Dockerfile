# syntax=docker/dockerfile:1
# CPU:  docker build -t softmux .
# CUDA: docker build -t softmux:cuda --build-arg DEVICE=cuda .
# On x86-64 the default index's torch carries CUDA. For a small CPU image name an index with CPU builds of torch:
#       docker build -t softmux --build-arg PIP_EXTRA_INDEX_URL=… .
ARG DEVICE=cpu
ARG PYTHON_VERSION=3.12

# --- what every image stands on ---------------------------------------------------------------------------------------
FROM python:${PYTHON_VERSION}-slim-bookworm AS base-cpu

# Triton compiles its launchers with the system's C compiler at run time.
FROM base-cpu AS base-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# --- the virtual environment, slowest-changing layers first -----------------------------------------------------------
FROM base-cpu AS build
ARG DEVICE
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/softmux
ENV PATH=/opt/softmux/bin:$PATH
COPY constraints-torch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install -r constraints-torch.txt
# Refuse an image that could not do what it is named for.
RUN python -c "import sys, torch; wrong = sys.argv[1] == 'cuda' and torch.version.cuda is None; sys.exit('this torch has no CUDA: build without PIP_EXTRA_INDEX_URL, or name an index with CUDA builds' if wrong else 0)" "$DEVICE"
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY server/softmux/__init__.py server/softmux/
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[tune]'
COPY server server
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# --- what runs --------------------------------------------------------------------------------------------------------
# hadolint ignore=DL3006
FROM base-${DEVICE} AS final
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin softmux \
    && install --directory --owner softmux --group softmux /data /cache
COPY --from=build /opt/softmux /opt/softmux
COPY adapters /srv/adapters
ENV PATH=/opt/softmux/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SOFTMUX_HOST=0.0.0.0 \
    SOFTMUX_PORT=8000 \
    SOFTMUX_DATA=/data \
    SOFTMUX_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor
USER 10001
WORKDIR /data
VOLUME ["/data", "/cache"]
EXPOSE 8000
# Loading a large model takes its time; a container that is not ready is not yet unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"SOFTMUX_PORT\"]}/health/ready', timeout=4)"]
ENTRYPOINT ["softmux"]
CMD ["serve"]
