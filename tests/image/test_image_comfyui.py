"""The Dockerfile's step that puts ComfyUI into the image, run by a shell on a test's folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.package_index import make_wheel, serving

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
REQUIREMENTS = """\
comfyui-frontend-package==1.0
torch
torchsde
torchvision
torchaudio
tiny-one
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A ComfyUI repository with a tag."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "main.py").write_text("print('main')\n")
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t.t"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "v9.9"]):
        subprocess.run([*git, *words], check=True)
    return folder


def step() -> str:
    """The shell text of the step."""
    text = DOCKERFILE.read_text("utf-8").replace("\\\n", "")
    (found,) = re.findall(
        r"^RUN (?:--mount=\S+ +)?(if \[ -n \"\$\{COMFYUI_VERSION\}.*)$", text, re.MULTILINE
    )
    return str(found)


def run(root: Path, env: Mapping[str, str]) -> None:
    """Run the step with the test's folders as /comfyui, /opt and /tmp."""
    script = re.sub(r"(?<=[ >=])/(comfyui|opt|tmp)\b", rf"{root}/\1", step())
    script = script.replace("/worker/.venv/bin/uv", str(Path(sys.executable).with_name("uv")))
    (root / "tmp").mkdir()
    subprocess.run(["sh", "-ec", script], env={**os.environ, **env}, check=True)


def test_a_version_is_installed_and_compiled_with_its_requirements_but_torch(
    tmp_path: Path, repository: Path
) -> None:
    root, wheels = tmp_path / "root", tmp_path / "wheels"
    wheels.mkdir()
    for name in ("torchsde", "torchvision", "torchaudio", "comfyui-frontend-package"):
        make_wheel(wheels, name, "1.0")
    make_wheel(wheels, "tiny-one", "1.0", ["torch==2.13.0"])
    make_wheel(wheels, "tiny-one", "2.0", ["torch>=3"])
    make_wheel(wheels, "torch", "3.0")
    torch = make_wheel(tmp_path, "torch", "2.13.0")
    subprocess.run([sys.executable, "-m", "venv", root / "opt" / "comfyui"], check=True)
    pip = root / "opt" / "comfyui" / "bin" / "pip"
    found = ["--no-index", "--find-links", str(torch.parent), "torch==2.13.0"]
    subprocess.run([pip, "install", "-q", *found], check=True)
    with serving(wheels) as index:
        version = {"COMFYUI_VERSION": "v9.9", "COMFYUI_REPOSITORY": f"file://{repository}"}
        place = {"UV_DEFAULT_INDEX": index.env()["PIP_INDEX_URL"]}
        run(root, {**index.env(), **place, **version})
    listed = subprocess.check_output([pip, "list", "--format=freeze"], text=True).split()
    assert {"torch==2.13.0", "torchsde==1.0", "tiny_one==1.0"} <= {
        n.replace("-", "_") for n in listed
    }
    assert not [n for n in listed if n.startswith(("comfyui", "torchvision", "torchaudio"))]
    assert sorted(p.name for p in (root / "comfyui").iterdir()) == [
        *("__pycache__", "main.py", "requirements.txt")
    ]
    assert list((root / "tmp").iterdir()) == []


def test_without_a_version_nothing_is_installed(tmp_path: Path) -> None:
    run(tmp_path, {"COMFYUI_VERSION": ""})
    assert not (tmp_path / "comfyui").exists()
