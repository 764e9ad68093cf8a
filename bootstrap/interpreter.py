"""Which Python runs ComfyUI: never the worker's own, unless nothing else has torch."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error
from bootstrap.volume import COMFYUI, Layout

CODES = {
    "comfyui.python_missing": "No Python that can run ComfyUI was found",
    "comfyui.help_failed": "ComfyUI's `main.py --help` did not work",
}
IMAGE_PYTHON = Path("/opt/comfyui/bin/python")
_VENV_NAMES = ("venv", ".venv")
_PROBE = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('torch') else 3)"
_PROBE_SECONDS = 60  # a venv on a cold network volume


def choose_python(settings: Settings, layout: Layout) -> Path | Finding:
    """The first candidate that starts and has torch, or a finding that says what each lacks.

    COMFYUI_PYTHON is the only candidate when it is set: somebody meant it.
    """
    tried: list[str] = []
    for candidate in _candidates(settings, layout):
        problem = _problem_with(candidate)
        if problem is None:
            return candidate
        tried.append(f"{candidate} ({problem})")
    return error(
        "comfyui.python_missing",
        f"No Python that can run ComfyUI: tried {', '.join(tried) or 'nothing'}.",
        "Set COMFYUI_PYTHON to the interpreter ComfyUI runs with on the Pod (a venv must be made "
        "by the same Python version as the image has), or install torch into one of these.",
        tried=tried,
    )


def ask_help(python: Path, comfyui: Path, env: dict[str, str]) -> str | Finding:
    """What `main.py --help` prints; it answers before torch is imported (0.2 s from local disk)."""
    command = [str(python), "main.py", "--help"]
    try:
        answer = subprocess.run(
            command,
            cwd=comfyui,
            env=env,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return _help_failed(comfyui, str(problem))
    if answer.returncode != 0:
        return _help_failed(
            comfyui, (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        )
    return answer.stdout


def _help_failed(comfyui: Path, why: str) -> Finding:
    return error(
        "comfyui.help_failed",
        f"`main.py --help` in {comfyui} did not work: {why}",
        "Check that ComfyUI on the volume is complete: on a Pod, cd into its folder and run "
        "`git status`, then `git checkout .` to restore missing files.",
    )


def _candidates(settings: Settings, layout: Layout) -> Iterator[Path]:
    if settings.comfyui_python is not None:
        yield settings.comfyui_python
        return
    homes = [layout.comfyui] if layout.comfyui else []
    if layout.comfyui_on_volume:
        homes += [layout.root, layout.root / COMFYUI]
    for home in dict.fromkeys(homes):
        for name in _VENV_NAMES:
            if (home / name).is_dir():
                yield home / name / "bin" / "python"
    yield IMAGE_PYTHON
    on_path = which("python3")
    if on_path:
        yield Path(on_path)


def _problem_with(python: Path) -> str | None:
    """Why `python` will not do; None when it will. Torch is looked for, not imported."""
    if not python.exists():
        return "a link that leads nowhere" if python.is_symlink() else "not there"
    try:
        answer = subprocess.run(
            [str(python), "-I", "-c", _PROBE],
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except OSError as problem:
        return problem.strerror or "cannot be run"
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_SECONDS} s"
    if answer.returncode == 3:
        return "has no torch"
    return None if answer.returncode == 0 else "does not start"
