"""Pure: which distribution brings a module, and which modules a version of ComfyUI needs to start.

The first from the packages' own documentation, only those that ComfyUI's custom nodes use. The
second from the imports at module level that its `main.py` reaches (not those within functions, nor
those whose ImportError is caught), followed through each release of its repository from 0.0.1 to
0.33; 0.34 to 0.38 from their requirements and the issues about them. A version that does not tell
its number has the imports of the oldest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Of the four distributions of OpenCV the headless one needs no libGL, which servers lack.
_MODULES = {
    "Crypto": "pycryptodome",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "ascii_magic": "ascii-magic",
    "attr": "attrs",
    "blend_modes": "blend-modes",
    "bs4": "beautifulsoup4",
    "clip_interrogator": "clip-interrogator",
    "comfyui_frontend_package": "comfyui-frontend-package",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "ffmpeg": "ffmpeg-python",
    "flash_attn": "flash-attn",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "github": "PyGithub",
    "huggingface_hub": "huggingface-hub",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "jwt": "PyJWT",
    "magic": "python-magic",
    "mss": "mss",
    "OpenGL": "PyOpenGL",
    "pkg_resources": "setuptools<81",
    "pynvml": "nvidia-ml-py",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "segment_anything": "segment-anything",
    "usb": "pyusb",
    "websocket": "websocket-client",
    "yaml": "PyYAML",
}
#: What a distribution (normalised name) is imported as, where that is not its name.
MODULES = {
    **{name.lower().replace("_", "-"): module for module, name in _MODULES.items()},
    "opencv-python": "cv2",
    "opencv-contrib-python": "cv2",
    "opencv-contrib-python-headless": "cv2",
}
# Distributions that bring the same modules with the same version numbers: one will do.
_GROUPS = (
    frozenset(
        {
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        }
    ),
    frozenset({"onnxruntime", "onnxruntime-gpu"}),
    frozenset({"pillow", "pillow-simd"}),
    frozenset({"triton", "pytorch-triton", "pytorch-triton-rocm"}),
    frozenset({"tensorflow", "tensorflow-cpu"}),
    frozenset({"scikit-learn", "sklearn"}),
    frozenset({"pynvml", "nvidia-ml-py"}),
)
#: For a distribution (normalised name), the others that bring the same modules.
ALIKE = {name: sorted(group - {name}) for group in _GROUPS for name in group}


def distribution_of(module: str) -> str:
    """What to install for `import module`, by its first part; mostly the name itself."""
    top = module.partition(".")[0]
    if module == "google.protobuf" or module.startswith("google.protobuf."):
        return "protobuf"
    return _MODULES.get(top, top)


@dataclass(frozen=True)
class HardImport:
    """ComfyUI of the versions `since` <= v < `before` imports `module`, which `distribution` (its
    normalised name) brings."""

    module: str
    distribution: str
    since: tuple[int, ...] = ()
    before: tuple[int, ...] | None = None


_ALWAYS = (
    HardImport("PIL", "pillow"),
    HardImport("aiohttp", "aiohttp"),
    HardImport("einops", "einops"),
    HardImport("numpy", "numpy"),
    HardImport("psutil", "psutil"),
    HardImport("safetensors", "safetensors"),
    HardImport("scipy", "scipy"),
    HardImport("torch", "torch"),
    HardImport("torchsde", "torchsde"),
    HardImport("tqdm", "tqdm"),
    HardImport("transformers", "transformers"),
    HardImport("yaml", "pyyaml"),
)
_BY_VERSION = (
    HardImport("torchvision", "torchvision", (0, 0, 1)),
    HardImport("requests", "requests", (0, 1)),
    HardImport("typing_extensions", "typing-extensions", (0, 1)),
    HardImport("tokenizers", "tokenizers", (0, 3, 33)),
    HardImport("av", "av", (0, 3, 48)),
    HardImport("packaging", "packaging", (0, 3, 48)),
    HardImport("torchaudio", "torchaudio", (0, 3, 48), (0, 3, 50)),
    HardImport("pydantic", "pydantic", (0, 9)),
    HardImport("sqlalchemy", "sqlalchemy", (0, 9)),
    HardImport("comfy_aimdo", "comfy-aimdo", (0, 12)),
    HardImport("filelock", "filelock", (0, 17)),
    HardImport("torchaudio", "torchaudio", (0, 20), (0, 38)),
    HardImport("comfy_kitchen", "comfy-kitchen", (0, 29)),
)
# From 0.38 the assets database is on by default, and ComfyUI ends with code 1 where it cannot be.
_ASSETS = (
    HardImport("alembic", "alembic", (0, 38)),
    HardImport("blake3", "blake3", (0, 38)),
)


def hard_imports(version: str | None, arguments: Iterable[str] = ()) -> tuple[HardImport, ...]:
    """What ComfyUI `version` cannot start without, with these command line `arguments`."""
    number = _number(version)
    if number is None:
        return _ALWAYS
    assets = () if "--disable-assets" in arguments else _ASSETS
    return (*_ALWAYS, *(each for each in (*_BY_VERSION, *assets) if _is_for(each, number)))


def _is_for(each: HardImport, number: tuple[int, ...]) -> bool:
    return each.since <= number and (each.before is None or number < each.before)


def _number(version: str | None) -> tuple[int, ...] | None:
    """`0.33.0` of `v0.33.0-12-gabc`; a checkout between two releases has the earlier's number."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(map(int, match[1].split("."))) if match else None
