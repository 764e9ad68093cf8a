"""A git repository of the demo's ComfyUI with a tag, for the Dockerfile's COMFYUI_REPOSITORY."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TAG = "v0.3.75"
# Needs torchvision, which the image under test does not have: see conftest.ARGUMENTS.
_LEFT_OUT = "spandrel"


def make_repository(comfyui: Path, place: Path) -> Path:
    """`comfyui` as the only commit of a new repository at `place`, without what workers left."""
    shutil.copytree(comfyui, place, ignore=_left_by_workers)
    wanted = place / "requirements.txt"
    lines = wanted.read_text("utf-8").splitlines(keepends=True)
    wanted.write_text("".join(line for line in lines if line.strip() != _LEFT_OUT), "utf-8")
    git = ["git", "-C", str(place), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    # By force: its own .gitignore names folders that its repository does contain.
    for words in (["init", "-q"], ["add", "--force", "."], ["commit", "-qm", TAG], ["tag", TAG]):
        subprocess.run([*git, *words], check=True)
    return place


def _left_by_workers(folder: str, names: list[str]) -> set[str]:
    here = Path(folder)
    own = {name for name in names if (here / name).is_symlink() or name == "__pycache__"}
    return own | {name for name in names if here.name == "output" and (here / name).is_file()}
