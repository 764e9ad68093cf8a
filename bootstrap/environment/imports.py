"""Pure: which distribution has a module, which modules a version of ComfyUI needs to start, and
which nodes failed to import in a boot, why, and how long each pack took.

Sources: the packages' own documentation, for packages that custom nodes use; the module-level
imports that `main.py` reaches (not those in functions, or whose ImportError is caught) in each
release from 0.0.1 to 0.33, and for 0.34 to 0.38 their requirements and issues (an unknown version
counts as the oldest); ComfyUI's log (nodes.py, 2023 to v0.38):

    Cannot import /…/custom_nodes/Pack module for custom nodes: No module named 'x'
    Import times for custom nodes:
       0.3 seconds: /…/custom_nodes/Good
       0.1 seconds (IMPORT FAILED): /…/custom_nodes/Pack
    IMPORT FAILED: nodes_canny.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bootstrap.core.findings import Finding, info, ok, warning
from bootstrap.core.text import pluralize, printable, shell_quote, summarize_list
from bootstrap.environment.site_packages import PackagesFacts, pip_install, where_to_type

CODES = {
    "nodes.import_failed": "A custom node pack could not be imported",
    "nodes.import_failed_more": "Further custom node packs could not be imported",
    "nodes.extras_failed": "Some of ComfyUI's own extra nodes could not be imported",
    "nodes.import_slow": "Custom node packs took long to import",
    "nodes.imported": "All custom nodes were imported",
}
# So many packs get a finding each; the rest share one.
MOST_PACKS = 10
SLOW_SECONDS = 5.0
_TIME = re.compile(r"^\s*(\d+(?:\.\d+)?) seconds( \(IMPORT FAILED\))?: (.*\S)\s*$")
_FAILED, _WHY = "Cannot import ", " module for custom nodes:"
_EXTRA = re.compile(r"^IMPORT FAILED: (\S+)")
_MODULE = re.compile(r"No module named '([^']+)'")

# Of OpenCV's four distributions, the headless one needs no libGL, which servers lack.
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
#: A distribution's (normalised name) modules, if not its own name.
MODULES = {
    **{name.lower().replace("_", "-"): module for module, name in _MODULES.items()},
    "opencv-python": "cv2",
    "opencv-contrib-python": "cv2",
    "opencv-contrib-python-headless": "cv2",
}
# Distributions with the same modules and version numbers: one is enough.
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
#: For a distribution (normalised name), the others with the same modules.
ALIKE = {name: sorted(group - {name}) for group in _GROUPS for name in group}


def distribution_of(module: str) -> str:
    """What to install for `import module`, by its first part; usually the same name."""
    top = module.partition(".")[0]
    if module == "google.protobuf" or module.startswith("google.protobuf."):
        return "protobuf"
    return _MODULES.get(top, top)


@dataclass(frozen=True)
class HardImport:
    """ComfyUI of the versions `since` <= v < `before` imports `module` from `distribution`
    (normalised name)."""

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
# From 0.38 the assets database is on by default, and without it ComfyUI exits with code 1.
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
    """`0.33.0` of `v0.33.0-12-gabc`; a checkout between two releases gets the earlier number."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(map(int, match[1].split("."))) if match else None


@dataclass(frozen=True)
class Import:
    """One pack's import: `seconds` it took, whether it `failed`, and the `reason` if given."""

    path: str
    seconds: float
    failed: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """The pack's own name."""
        return self.path.rstrip("/").rpartition("/")[2]


def read_imports(log: Sequence[str]) -> tuple[list[Import], list[str]]:
    """The packs in the order of the log, and the failed files of ComfyUI's own extras.

    The last boot in the log counts.
    """
    reasons: dict[str, str] = {}
    imports: list[Import] = []
    extras: list[str] = []
    for line in log:
        # A node may have printed something before it on the same line.
        path, failed, reason = line.partition(_FAILED)[2].partition(_WHY)
        if line.startswith("Import times for custom nodes"):
            imports, extras = [], []
        elif failed:
            reasons[path] = reason.strip()
        elif match := _TIME.match(line):
            imports.append(
                Import(match[3], float(match[1]), bool(match[2]), reasons.get(match[3], ""))
            )
        elif match := _EXTRA.match(line):
            extras.append(match[1])
    return imports, list(dict.fromkeys(extras))


def check_node_imports(
    log: Sequence[str], packages: PackagesFacts | None, comfyui: str
) -> list[Finding]:
    """Findings about nodes from a boot's log; none for an empty log. `packages` is the interpreter
    for pip commands, `comfyui` the folder it ran in.
    """
    imports, extras = read_imports(log)
    failed = [each for each in imports if each.failed]
    found = [_failed(each, packages, comfyui) for each in failed[:MOST_PACKS]]
    if len(failed) > MOST_PACKS:
        found.append(_more(failed[MOST_PACKS:]))
    if extras:
        found.append(_extras(extras))
    slow = sorted((i for i in imports if i.seconds >= SLOW_SECONDS), key=lambda i: -i.seconds)
    if slow:
        found.append(_slow(slow))
    if imports and not failed:
        found.append(
            ok("nodes.imported", f"{pluralize(len(imports), 'custom node pack')} imported.")
        )
    return found


def _failed(one: Import, packages: PackagesFacts | None, comfyui: str) -> Finding:
    module = _MODULE.search(one.reason)
    fix = (
        "Look for its traceback above `Cannot import` in the worker's log; update the pack on a "
        f"Pod: `{shell_quote('git', '-C', one.path, 'pull')}`, or disable it: "
        f"`{shell_quote('mv', one.path, f'{one.path}.disabled')}`."
    )
    if module and packages is not None:
        name = distribution_of(module[1])
        command = pip_install(packages, [(name, name)])
        fix = where_to_type(command, packages.python, comfyui)
    return warning(
        "nodes.import_failed",
        f"Custom node pack {printable(one.name)} could not be imported: "
        f"{one.reason or 'the log does not say why'}. Workflows with its nodes fail.",
        fix,
        pack=one.path,
        seconds=one.seconds,
        **({"module": module[1]} if module else {}),
    )


def _more(failed: Sequence[Import]) -> Finding:
    return warning(
        "nodes.import_failed_more",
        "Further node packs could not be imported: "
        f"{summarize_list([each.name for each in failed])}.",
        "Fix the ones listed first: they usually lack the same packages.",
        packs={each.path: each.reason for each in failed[:50]},
    )


def _extras(files: Sequence[str]) -> Finding:
    return info(
        "nodes.extras_failed",
        f"ComfyUI's own extra nodes in {summarize_list(files)} could not be imported; the others "
        "work.",
        "Install ComfyUI's requirements.txt completely if a workflow needs them.",
        files=list(files),
    )


def _slow(slow: Sequence[Import]) -> Finding:
    times = ", ".join(f"{printable(each.name)} {each.seconds:.1f} s" for each in slow[:5])
    return info(
        "nodes.import_slow",
        f"Custom node packs that took long to import, at every cold start: {times}.",
        "Disable what no workflow uses by renaming its folder to NAME.disabled.",
        seconds={each.path: each.seconds for each in slow[:50]},
    )
