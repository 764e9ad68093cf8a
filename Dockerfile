# The worker's image: two Pythons, no models, and no ComfyUI unless COMFYUI_VERSION names one: they are
# on the network volume.
#   docker build --platform linux/amd64 -t YOU/comfyui-volume-worker:0.1 .
# Its variants: docker-bake.hcl. How it is tested, its arguments and sizes: docs/image.md.
# torch brings its own CUDA libraries, so the smallest of NVIDIA's images is enough.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04
FROM ${BASE_IMAGE}

# An argument, not ENV: it is only for the build.
ARG DEBIAN_FRONTEND=noninteractive
# The Python that ComfyUI runs with, 3.10 to 3.13: that of the venv on the volume, where there is one.
# Empty is BASE_IMAGE's own (3.12); another comes from the deadsnakes archive for Ubuntu.
ARG PYTHON_VERSION=""

# ffmpeg, libgl1 and libglib2.0-0 are what custom nodes need most often; git is for nodes that check
# their own version; gcc and Python's headers are for Triton, which compiles at run time, and for
# packages without a wheel; tini reaps processes as PID 1 and passes SIGTERM on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg gcc git libc6-dev libgl1 libglib2.0-0 python3 python3-dev python3-venv tini \
    && if [ ! -x "/usr/bin/python${PYTHON_VERSION:-3}" ]; then \
        apt-get install -y --no-install-recommends gpg gpg-agent software-properties-common \
        && add-apt-repository -y ppa:deadsnakes/ppa \
        && apt-get install -y --no-install-recommends \
            "python${PYTHON_VERSION}-dev" "python${PYTHON_VERSION}-venv" \
        && apt-get purge -y --autoremove gpg gpg-agent software-properties-common; \
    fi \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log

# Only for the build, hence not ENV. Downloads are cached outside the image; what is installed is
# compiled, so that the first start does not have to.
# SSL_CERT_FILE: a file of BASE_IMAGE with the certificates to trust, behind a proxy that has its own.
ARG SSL_CERT_FILE
ARG UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
# Installs all the rest, in the version that the worker has.
ARG UV="uv==0.13.9"

# ComfyUI's Python: large, changes seldom. PyTorch's own index holds a build for each CUDA version; it
# must fit the driver of the machines that Runpod may choose (CUDA 13.0 needs driver 580 or newer). An
# empty index is the one uv is configured with. A password in its URL would stay in the history.
ARG TORCH="torch==2.13.0 torchvision==0.28.0 torchaudio==2.11.0"
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
# Packages to leave out, as an extended regular expression: those that do not fit another torch.
ARG COMFYUI_LEFT_OUT=""
COPY requirements/comfyui.txt requirements/comfyui-constraints.txt requirements/image.txt /tmp/requirements/
# torch says which setuptools it works with. The .pth gives torch to venvs made with
# --system-site-packages, as those on volumes are.
RUN --mount=type=cache,target=/root/.cache/uv \
    cd /tmp/requirements \
    && "python${PYTHON_VERSION:-3}" -m venv /opt/comfyui \
    && /opt/comfyui/bin/pip install --no-cache-dir "${UV}" \
    && uv="/opt/comfyui/bin/uv pip" && export VIRTUAL_ENV=/opt/comfyui \
    && ${uv} install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} ${TORCH} \
    && ${uv} freeze | grep -E '^(torch|torchvision|torchaudio|triton|nvidia-.*|setuptools)==' > kept.txt \
    && sed -i '/^setuptools==/d' comfyui-constraints.txt \
    && grep -hvE "^(torch==|-c |#)" comfyui.txt image.txt \
        | grep -vE "^(${COMFYUI_LEFT_OUT:-nothing})=" > wanted.txt \
    && ${uv} install -r wanted.txt -c comfyui-constraints.txt -c kept.txt \
    && ${uv} check \
    && ${uv} uninstall uv \
    && packages="$("python${PYTHON_VERSION:-3}" -c 'import site; print(site.getsitepackages()[0])')" \
    && mkdir -p "${packages}" \
    && ls -d /opt/comfyui/lib/python3.*/site-packages > "${packages}/comfyui.pth" \
    && rm -rf /tmp/requirements

# The worker's Python: never shares packages with ComfyUI's.
WORKDIR /worker
COPY requirements/worker.txt requirements/constraints.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir "${UV}" \
    && .venv/bin/uv pip install --python .venv/bin/python -r requirements/worker.txt \
    && .venv/bin/uv pip check --python .venv/bin/python

# A ComfyUI for volumes that have none: a tag such as v0.38.0, empty for none. Its own requirements are
# added as far as torch allows; its web page is not, since the worker gives it one.
ARG COMFYUI_VERSION=""
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI
RUN --mount=type=cache,target=/root/.cache/uv \
    if [ -n "${COMFYUI_VERSION}" ]; then \
        git clone --quiet --depth 1 --branch "${COMFYUI_VERSION}" "${COMFYUI_REPOSITORY}" /comfyui \
        && rm -rf /comfyui/.git \
        && export VIRTUAL_ENV=/opt/comfyui && uv="/worker/.venv/bin/uv pip" \
        && ${uv} freeze | grep -iE '^(torch|torchvision|torchaudio|triton|nvidia-.*)==' > /tmp/kept.txt \
        && grep -viE "^(torch|torchvision|torchaudio|${COMFYUI_LEFT_OUT:-torch})([^a-z]|$)|^comfyui-" \
            /comfyui/requirements.txt > /tmp/wanted.txt \
        && ${uv} install -r /tmp/wanted.txt -c /tmp/kept.txt \
        && ${uv} check \
        && /opt/comfyui/bin/python -m compileall -q /comfyui \
        && rm /tmp/kept.txt /tmp/wanted.txt; \
    fi

COPY LICENSE ./
COPY bootstrap bootstrap
COPY handler handler
COPY scripts scripts
RUN .venv/bin/python -m compileall -q bootstrap handler scripts

# The GPU's allocator depends on the ComfyUI that runs; the worker sets it: see docs/image.md. The
# driver's video libraries are for nodes that decode and encode on the GPU.
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    COMFYUI_DIR=/comfyui \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

# No EXPOSE: no port is open. No USER: files on the volume belong to root, as a Pod writes them.
ENTRYPOINT ["tini", "--"]
CMD ["/worker/.venv/bin/python", "-m", "handler"]

# For Docker and compose; Runpod ignores it. What healthy means: docs/image.md. A start may take what
# its own limits allow: code, ComfyUI, models, warm-up; the first success ends that period.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["/worker/.venv/bin/python", "-m", "bootstrap.healthcheck"]

# Last, so that a new version or commit rebuilds nothing.
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=""
LABEL org.opencontainers.image.title="comfyui-volume-worker" \
      org.opencontainers.image.description="Runs ComfyUI on Runpod Serverless from a network volume" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
