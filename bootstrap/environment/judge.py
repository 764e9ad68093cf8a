"""Pure: what node packs lack in ComfyUI's Python, and the name under which it is kept.

Which distribution brings which module, where the two have different names, is from the packages'
own documentation; only those that ComfyUI's node packs use.

Everything that could make the answer another one goes into the name: the interpreter, the C
library, each installed package's version, each requirement. So an image that changed asks again,
and what was made for one image is used by no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from bootstrap.environment.packs import Pack, State
from bootstrap.environment.requirements import Requirement
from bootstrap.environment.site_packages import PackagesFacts
from bootstrap.environment.versions import evaluate, parse_version, satisfies

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
_BY_DISTRIBUTION = {
    **{name.lower().replace("_", "-"): module for module, name in _MODULES.items()},
    "opencv-python": "cv2",
    "opencv-contrib-python": "cv2",
    "opencv-contrib-python-headless": "cv2",
}
# Distributions that bring the same modules with the same version numbers: one will do.
_ALIKE = (
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
_ARCHIVE = re.compile(r"[A-Za-z0-9._+-]+-torch[A-Za-z0-9._+-]+-[0-9a-f]{16}\.zip")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


def distribution_of(module: str) -> str:
    """What to install for `import module`, by its first part; mostly the name itself."""
    top = module.partition(".")[0]
    if module == "google.protobuf" or module.startswith("google.protobuf."):
        return "protobuf"
    return _MODULES.get(top, top)


def module_of(distribution: str) -> str:
    """What a distribution (normalised name) is imported as, as far as that is known."""
    return _BY_DISTRIBUTION.get(distribution, distribution.replace("-", "_"))


def alike(distribution: str) -> tuple[str, ...]:
    """Other distributions (normalised names) that bring the same modules."""
    found = {name for group in _ALIKE if distribution in group for name in group}
    return tuple(sorted(found - {distribution}))


class Verdict(str, Enum):
    """What became of one requirement. `UNKNOWN` is also what does not apply here."""

    MET = "met"
    MISSING = "missing"
    WRONG = "wrong"
    UNTRACKED = "untracked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Judged:
    """A requirement, what became of it, and the version that is installed (None for none)."""

    requirement: Requirement
    verdict: Verdict
    version: str | None = None

    @property
    def name(self) -> str:
        """The package's normalised name."""
        return self.requirement.name

    def __str__(self) -> str:
        if self.verdict is Verdict.WRONG:
            return f"{self.requirement.text} ({self.version} is installed)"
        return self.requirement.text


def judge(requirement: Requirement, packages: PackagesFacts) -> Judged:
    """Whether a requirement is met by what is installed; never a guess."""
    if evaluate(requirement.marker, packages.markers) is not True:
        return Judged(requirement, Verdict.UNKNOWN)
    versions = packages.versions_of(requirement.name)
    if not versions:
        if any(packages.versions_of(other) for other in alike(requirement.name)):
            return Judged(requirement, Verdict.MET)
        if module_of(requirement.name) in packages.modules:
            return Judged(requirement, Verdict.UNTRACKED)
        return Judged(requirement, Verdict.MISSING)
    known = [version for version in versions if version is not None]
    verdicts = [satisfies(version, requirement.specifiers) for version in known]
    if True in verdicts:
        return Judged(requirement, Verdict.MET, known[0])
    if None in verdicts or not known:
        return Judged(requirement, Verdict.UNKNOWN)
    return Judged(requirement, Verdict.WRONG, known[0])


@dataclass(frozen=True)
class Wanted:
    """`missing` are requirements as pip reads them, each once, in order. `wrong` are those that
    are installed in a version that will not do: nothing is ever installed over them."""

    missing: tuple[str, ...]
    wrong: tuple[str, ...]


def wanted_by(packs: Iterable[Pack], packages: PackagesFacts) -> Wanted:
    """What the active packs require that is not there."""
    judged = [
        judge(requirement, packages)
        for pack in packs
        if pack.state is State.GOOD and not pack.disabled
        for requirement in pack.wishes.requirements
    ]
    return Wanted(_of(judged, Verdict.MISSING), _of(judged, Verdict.WRONG))


def name_for(wanted: Wanted, packages: PackagesFacts, libc: str) -> str:
    """The name, without ending, of the archive that has what is missing; fit for a file."""
    torch = next(iter(packages.versions_of("torch")), None) or "none"
    machine = packages.markers.get("platform_machine", "")
    told = json.dumps([wanted.missing, constraints(packages), packages.tag, machine, libc])
    digest = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return _UNSAFE.sub("_", f"{packages.tag}-{machine}-torch{torch}-{digest}")[:200]


def is_archive_name(name: str) -> bool:
    """Was a file of this name made by us, for whatever image and requirements?"""
    return _ARCHIVE.fullmatch(name) is not None


def constraints(packages: PackagesFacts) -> list[str]:
    """Lines for pip's `--constraint`: all that is installed, as it is."""
    installed = {p.name: p.version for p in reversed(packages.packages)}
    return sorted(
        f"{name}=={version}"
        for name, version in installed.items()
        if version is not None and parse_version(version) is not None
    )


def _of(judged: Iterable[Judged], verdict: Verdict) -> tuple[str, ...]:
    texts = (str(j) for j in judged if j.verdict is verdict)
    return tuple(sorted(dict.fromkeys(texts)))
