"""ComfyUI's torch, read from its files; torch is never imported here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The oldest Linux driver for programs built with a CUDA of that version. From 11 on, any minor
# version runs on the major's first driver ("minor version compatibility"). Source: NVIDIA, CUDA
# Compatibility, "Minor Version Compatibility", and the CUDA Toolkit release notes, table "CUDA
# Toolkit and Minimum Required Driver Version" (docs.nvidia.com, read in 2026).
OLDEST_DRIVER: dict[tuple[int, int], tuple[int, ...]] = {
    (10, 0): (410, 48),
    (10, 1): (418, 39),
    (10, 2): (440, 33),
    (11, 0): (450, 80, 2),
    (12, 0): (525, 60, 13),
    (13, 0): (580, 65, 6),
}


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch. `cuda` is the CUDA it was built for (`12.8`), None for a CPU or ROCm
    build; `hip` the ROCm version.
    """

    version: str | None
    cuda: str | None
    hip: str | None = None


def read_torch_build(python: Path) -> TorchBuild | None:
    """The torch of an interpreter, from torch/version.py or the package's metadata; None if its own
    folders have none. Only reads files.
    """
    for folder in package_folders(python):
        build = _from_version_file(folder) or _from_metadata(folder)
        if build:
            return build
    return None


def version_numbers(text: str) -> tuple[int, ...]:
    """`570.124.06` -> (570, 124, 6); empty for a text without numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


def oldest_driver(cuda: tuple[int, ...]) -> tuple[int, ...] | None:
    """The oldest driver for a CUDA version; None if it is older than the table."""
    known = [key for key in OLDEST_DRIVER if key <= cuda[:2]]
    return OLDEST_DRIVER[max(known)] if known else None


def runs_with(build: TorchBuild, driver: str | None) -> bool:
    """Is the driver new enough for the CUDA of that torch? True if it is unknown."""
    needed = oldest_driver(version_numbers(build.cuda)) if build.cuda else None
    have = version_numbers(driver or "")
    return not needed or not have or have >= needed


def package_folders(python: Path) -> tuple[Path, ...]:
    """An interpreter's site-packages and dist-packages, a venv's own first. Does not resolve the
    path: in a venv `bin/python` is a link to another interpreter, and its location makes it the
    venv's.
    """
    return tuple(dict.fromkeys(_package_folders(python)))


def _package_folders(python: Path) -> Iterator[Path]:
    for binary in (python, python.resolve()):
        prefix = binary.parent.parent
        for library in (prefix / "lib", prefix / "local/lib", prefix / "lib64"):
            for name in ("site-packages", "dist-packages"):
                yield from sorted(library.glob(f"python3*/{name}"))
        if not _sees_system(prefix):
            return
    yield Path("/usr/lib/python3/dist-packages")


def _sees_system(prefix: Path) -> bool:
    """Whether packages outside `prefix` count: for a venv only if it was set up so."""
    try:
        text = (prefix / "pyvenv.cfg").read_text("utf-8", "replace")
    except OSError:
        return True
    settings = (line.partition("=") for line in text.lower().splitlines())
    return any(
        key.strip() == "include-system-site-packages" and value.strip() == "true"
        for key, _, value in settings
    )


def _from_version_file(folder: Path) -> TorchBuild | None:
    """torch/version.py has assignments such as `cuda: Optional[str] = '12.8'`."""
    try:
        tree = ast.parse((folder / "torch/version.py").read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    values: dict[str, str] = {}
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if (
                isinstance(target, ast.Name)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                values[target.id] = value.value
    if "__version__" not in values:
        return None
    return TorchBuild(values["__version__"], values.get("cuda"), hip=values.get("hip"))


def _from_metadata(folder: Path) -> TorchBuild | None:
    """The version in `torch-2.9.1+cu128.dist-info`; `+cu128` says CUDA 12.8."""
    for info in sorted(folder.glob("torch-*.dist-info")):
        version = info.name[len("torch-") : -len(".dist-info")]
        local = version.partition("+")[2]
        digits = local[2:] if local.startswith("cu") and local[2:].isdigit() else ""
        cuda = f"{digits[:-1]}.{digits[-1]}" if len(digits) >= 3 else None
        hip = local[4:] if local.startswith("rocm") else None
        return TorchBuild(version, cuda, hip=hip)
    return None
