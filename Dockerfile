# The worker's image: two Pythons, no ComfyUI and no models, which are on the network volume.
#   docker build --platform linux/amd64 -t YOU/comfyui-volume-worker .
ARG BASE_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE_IMAGE}

# PyTorch's own index holds a build for each CUDA version; it must fit BASE_IMAGE, and the driver of
# the machines that Runpod may choose (CUDA 13.0 wants driver 580 or newer).
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
ARG TORCH_COMPANIONS="torchvision==0.28.0"

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# ffmpeg, libgl1 and libglib2.0-0 are what custom nodes ask for most; git is for nodes that look at
# their own version; tini reaps processes as PID 1 and passes SIGTERM on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg git libgl1 libglib2.0-0 python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# ComfyUI's Python: large, changes seldom.
COPY requirements/comfyui.txt requirements/comfyui-constraints.txt /tmp/requirements/
RUN python3 -m venv /opt/comfyui \
    && torch="$(grep '^torch==' /tmp/requirements/comfyui.txt)" \
    && /opt/comfyui/bin/pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "${torch}" ${TORCH_COMPANIONS} \
    && /opt/comfyui/bin/pip install -r /tmp/requirements/comfyui.txt

# The worker's Python: never shares packages with ComfyUI's.
WORKDIR /worker
COPY requirements/worker.txt requirements/constraints.txt requirements/
RUN python3 -m venv .venv && .venv/bin/pip install -r requirements/worker.txt

COPY bootstrap bootstrap
COPY handler handler
COPY scripts scripts
RUN .venv/bin/python -m compileall -q bootstrap handler scripts

# max_split_size_mb is for torch's own allocator: without --disable-cuda-malloc ComfyUI would choose
# cudaMallocAsync, which ignores it.
ENV MALLOC_ARENA_MAX=2 \
    PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:256 \
    COMFYUI_ARGS=--disable-cuda-malloc \
    PYTHONUNBUFFERED=1

ENTRYPOINT ["tini", "--"]
CMD ["/worker/.venv/bin/python", "-m", "handler"]
