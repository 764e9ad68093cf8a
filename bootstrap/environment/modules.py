"""Pure: which distribution brings a module, where the two have different names.

From the packages' own documentation; only those that ComfyUI's custom nodes use.
"""

from __future__ import annotations

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
