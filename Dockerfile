# The worker's image: two Pythons, no models, and no ComfyUI unless COMFYUI_VERSION names one: they are
# on the network volume.
#   docker build --platform linux/amd64 -t YOU/comfyui-volume-worker:0.1 .
# How it is tested, its arguments and sizes: docs/image.md.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE_IMAGE}

# An argument and not ENV: it is for the build alone.
ARG DEBIAN_FRONTEND=noninteractive
# The Python that ComfyUI runs with, 3.10 to 3.13: that of the venv on the volume, where there is one.
# Empty is BASE_IMAGE's own (3.12); another comes from the deadsnakes archive for Ubuntu.
ARG PYTHON_VERSION=""

# ffmpeg, libgl1 and libglib2.0-0 are what custom nodes ask for most; git is for nodes that look at
# their own version; tini reaps processes as PID 1 and passes SIGTERM on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg git libgl1 libglib2.0-0 python3 python3-venv tini \
    && if [ ! -x "/usr/bin/python${PYTHON_VERSION:-3}" ]; then \
        apt-get install -y --no-install-recommends gpg gpg-agent software-properties-common \
        && add-apt-repository -y ppa:deadsnakes/ppa \
        && apt-get install -y --no-install-recommends \
            "python${PYTHON_VERSION}" "python${PYTHON_VERSION}-venv" \
        && apt-get purge -y --autoremove gpg gpg-agent software-properties-common; \
    fi \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/*.log

# ComfyUI's Python: large, changes seldom. PyTorch's own index holds a build for each CUDA version; it
# must fit BASE_IMAGE, and the driver of the machines that Runpod may choose (CUDA 13.0 wants driver 580
# or newer). All three can be empty. An address with a password in it would stay in the history.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
ARG TORCH_COMPANIONS="torchvision==0.28.0"
# What ComfyUI's upscaling and image nodes import; spandrel needs torchvision.
ARG COMFYUI_EXTRAS="kornia==0.9.0 kornia_rs==0.2.0 spandrel==0.4.2"
COPY requirements/comfyui.txt requirements/comfyui-constraints.txt /tmp/requirements/
# Downloads are cached beside the image, so that a changed line does not fetch torch again. The .pth
# gives torch to a venv that is made with --system-site-packages, as those on volumes are.
RUN --mount=type=cache,target=/root/.cache/pip \
    "python${PYTHON_VERSION:-3}" -m venv /opt/comfyui \
    && torch="$(grep '^torch==' /tmp/requirements/comfyui.txt)" \
    && /opt/comfyui/bin/pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "${torch}" ${TORCH_COMPANIONS} \
    && /opt/comfyui/bin/pip install -r /tmp/requirements/comfyui.txt ${COMFYUI_EXTRAS} \
    && /opt/comfyui/bin/pip check \
    && packages="$("python${PYTHON_VERSION:-3}" -c 'import site; print(site.getsitepackages()[0])')" \
    && mkdir -p "${packages}" \
    && ls -d /opt/comfyui/lib/python3.*/site-packages > "${packages}/comfyui.pth" \
    && rm -rf /tmp/requirements

# The worker's Python: never shares packages with ComfyUI's.
WORKDIR /worker
COPY requirements/worker.txt requirements/constraints.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv .venv \
    && .venv/bin/pip install -r requirements/worker.txt \
    && .venv/bin/pip check

# A ComfyUI for volumes that have none: a tag such as v0.3.75, empty for none. Its own requirements are
# added as far as torch allows; its web page is not, since the worker gives it one.
ARG COMFYUI_VERSION=""
ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "${COMFYUI_VERSION}" ]; then \
        git clone --quiet --depth 1 --branch "${COMFYUI_VERSION}" "${COMFYUI_REPOSITORY}" /comfyui \
        && rm -rf /comfyui/.git \
        && /opt/comfyui/bin/pip list --format=freeze | grep -iE '^(torch|torchvision)==' > /tmp/kept.txt \
        && grep -viE '^(torch|torchvision|torchaudio)([^a-z]|$)|^comfyui-' /comfyui/requirements.txt > /tmp/wanted.txt \
        && /opt/comfyui/bin/pip install -r /tmp/wanted.txt -c /tmp/kept.txt \
        && /opt/comfyui/bin/python -m compileall -q /comfyui \
        && rm /tmp/kept.txt /tmp/wanted.txt; \
    fi

COPY LICENSE ./
COPY bootstrap bootstrap
COPY handler handler
COPY scripts scripts
RUN .venv/bin/python -m compileall -q bootstrap handler scripts

# The GPU's allocator depends on the ComfyUI that runs; the worker sets it: see docs/image.md.
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    COMFYUI_DIR=/comfyui

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
LABEL org.opencontainers.image.title="comfyui-volume-worker" \
      org.opencontainers.image.description="Runs ComfyUI on Runpod Serverless from a network volume" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
