# All variants of the image: `docker buildx bake -f docker-bake.hcl` builds cu130 and cu128; name a target
# to build it alone. Without -f, bake also reads docker-compose.yml, which fails where VOLUME is not set.
# CUDA and torch go together: PyTorch has no build for CUDA 12.8 after 2.11. torchaudio 2.11 is its last
# release series, and works with every later torch.

variable "IMAGE" { default = "comfyui-volume-worker" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }
variable "SOURCE" { default = "" }
variable "TAG" { default = "local" }
# ComfyUI's own Python, "3.10" to "3.13"; empty: the base image's, 3.12.
variable "PYTHON_VERSION" { default = "" }
# The ComfyUI in the -comfyui variants.
variable "COMFYUI_VERSION" { default = "v0.38.0" }

group "default" { targets = ["cu130", "cu128"] }
group "all" { targets = ["cu130", "cu128", "cu130-comfyui", "cu128-comfyui"] }

target "_common" {
  context   = "."
  platforms = ["linux/amd64"]
  args = {
    VERSION        = VERSION
    REVISION       = REVISION
    SOURCE         = SOURCE
    PYTHON_VERSION = PYTHON_VERSION
  }
}

# CUDA 13.0: the Dockerfile's defaults. Needs driver 580 or newer.
target "cu130" {
  inherits = ["_common"]
  tags     = ["${IMAGE}:${TAG}"]
}

# CUDA 12.8: driver 570 or newer, for machines whose driver is older than 580.
target "cu128" {
  inherits = ["_common"]
  tags     = ["${IMAGE}:${TAG}-cuda12.8"]
  args = {
    BASE_IMAGE      = "nvidia/cuda:12.8.1-base-ubuntu24.04"
    TORCH           = "torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0"
    TORCH_INDEX_URL = "https://download.pytorch.org/whl/cu128"
  }
}

target "cu130-comfyui" {
  inherits = ["cu130"]
  tags     = ["${IMAGE}:${TAG}-comfyui"]
  args     = { COMFYUI_VERSION = COMFYUI_VERSION }
}

target "cu128-comfyui" {
  inherits = ["cu128"]
  tags     = ["${IMAGE}:${TAG}-cuda12.8-comfyui"]
  args     = { COMFYUI_VERSION = COMFYUI_VERSION }
}

# Without a GPU: to try it on your own machine, and for CI.
target "cpu" {
  inherits = ["_common"]
  tags     = ["${IMAGE}:${TAG}-cpu"]
  args = {
    BASE_IMAGE      = "ubuntu:24.04"
    TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
    COMFYUI_VERSION = COMFYUI_VERSION
  }
}
