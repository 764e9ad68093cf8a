"""The image, built once for all checks, and a place on disk for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from tests.image.buildah import BASE, IMAGE, WITH_COMFYUI, Buildah, missing_tools
from tests.image.comfyui_repository import TAG, make_repository
from tests.image.container import Container
from tests.image.packages import Lent, authorities, debian_source, identifying, lend_packages

REPOSITORY = Path(__file__).resolve().parents[2]
# Where people leave such files; .dockerignore has to keep them out.
PLANTED = (".env", "bootstrap/.env.local", "token.txt", "shared/volume/models/key.pem")
# No index: uv takes the CPU build of torch from this machine's configured sources. There is no
# torchvision and torchaudio for it, hence no spandrel, which needs torchvision, and a stand-in when
# ComfyUI runs.
ARGUMENTS = {
    "BASE_IMAGE": BASE,
    "TORCH": "torch==2.13.0",
    "TORCH_INDEX_URL": "",
    "COMFYUI_LEFT_OUT": "spandrel",
    "SOURCE": "https://example.com/source",
    "REVISION": "image-test",
}
SECRET = "image-test-secret-d41d8cd98f"


@dataclass(frozen=True)
class Sources:
    """What an image is built from: the repository's current files, and what the build is lent."""

    context: Path
    lent: Lent


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("build")
    context = folder / "context"
    _copy_repository(context)
    for name in PLANTED:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(f"HF_TOKEN={SECRET}\n", encoding="utf-8")
    return Sources(context, lend_packages(folder))


@pytest.fixture(scope="session")
def image(sources: Sources) -> Iterator[Buildah]:
    """The image, built.

    IMAGE_TEST_DIR keeps the layers there, so that the next run builds only what changed.
    """
    missing = missing_tools()
    if missing or os.geteuid() != 0:
        pytest.exit(f"needs root and {', '.join(missing) or 'nothing more'}", returncode=2)
    kept = os.environ.get("IMAGE_TEST_DIR")
    buildah = Buildah(Path(kept or tempfile.mkdtemp(prefix="image-test-", dir="/var/tmp")))
    try:
        shutil.rmtree(buildah.pushed, ignore_errors=True)
        buildah.make_base(debian_source())
        buildah.build(sources.context, sources.lent, arguments(sources.lent))
        yield buildah
        _print_summary(buildah)
    finally:
        if not kept:
            buildah.remove()


@pytest.fixture(scope="session")
def with_comfyui(
    image: Buildah, sources: Sources, demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The name of an image with the demo's ComfyUI in it, cloned from a repository on disk."""
    repository = make_repository(demo.comfyui, tmp_path_factory.mktemp("git") / "ComfyUI")
    lent = Lent(dict(sources.lent.paths))
    source = {"COMFYUI_VERSION": TAG, "COMFYUI_REPOSITORY": f"file://{lent.lend(repository)}"}
    image.build(sources.context, lent, {**arguments(lent), **source}, WITH_COMFYUI)
    return WITH_COMFYUI


@pytest.fixture(scope="session")
def clues(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What must not be in the image: planted secrets and what identifies this machine."""
    return [SECRET, *identifying(lend_packages(tmp_path_factory.mktemp("clues")))]


@pytest.fixture
def container(image: Buildah, demo: DemoVolume, volume: Path) -> Iterator[Container]:
    """A container with a copy of the demo volume where Runpod mounts it."""
    with image.container() as (_, root):
        binds = {volume: "/runpod-volume", **stand_in(demo, root)}
        yield Container(root, image.image_config(), binds)


def stand_in(demo: DemoVolume, root: Path) -> dict[Path, str]:
    """The demo's torchvision, bound into ComfyUI's Python if the image was built without one."""
    (inside,) = root.glob("opt/comfyui/lib/python3.*/site-packages")
    if (inside / "torchvision").is_dir():
        return {}
    (outside,) = demo.python.parents[1].glob("lib/python3.*/site-packages")
    return {outside / "torchvision": f"/{(inside / 'torchvision').relative_to(root)}"}


def arguments(lent: Lent) -> dict[str, str]:
    """The build arguments, with this machine's certificates for uv."""
    trusted = authorities()
    return {**ARGUMENTS, **({"SSL_CERT_FILE": lent.lend(trusted)} if trusted else {})}


def _copy_repository(context: Path) -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, context / name)


def _print_summary(buildah: Buildah) -> None:
    lines = [
        f"{step.seconds:7.1f} s  {step.name[:90]}" for step in buildah.steps if step.seconds >= 0.5
    ]
    lines += [f"{layer.size / 1e6:7.1f} MB layer" for layer in buildah.layers()]
    print(f"\n{IMAGE}", *lines, sep="\n", file=sys.stderr)
