"""Pure: pip commands to type, and where."""

from __future__ import annotations

from collections.abc import Iterable

from bootstrap.core.redact import MASK, masked
from bootstrap.core.text import on_pod, typed
from bootstrap.environment.site_packages import PackagesFacts

# Each is built for one torch: pip brings another torch with another version of these.
_BOUND_TO_TORCH = frozenset({"torchvision", "torchaudio", "torchtext", "xformers", "flash-attn"})


def pip_install(packages: PackagesFacts, requirements: Iterable[tuple[str, str]]) -> str:
    """The command that installs requirements, given as (normalised name, text).

    It keeps torch as it is where something bound to torch is installed, gets pip first where the
    venv has none, and passes Debian's guard where the interpreter is the system's own.
    """
    wanted = {name: masked(text) for name, text in requirements}
    torch = public_torch(packages)
    if torch and "torch" not in wanted and _BOUND_TO_TORCH & set(wanted):
        wanted["torch"] = f"torch=={torch}"
    flags = ["--break-system-packages"] if packages.managed else []
    command = typed(packages.python, "-m", "pip", "install", *flags, *wanted.values())
    if packages.packages and not packages.versions_of("pip"):
        return f"{typed(packages.python, '-m', 'ensurepip')} && {command}"
    return command


def public_torch(packages: PackagesFacts) -> str | None:
    """The installed torch's version without its local part: `2.9.1` of `2.9.1+cu128`."""
    version = next(iter(packages.versions_of("torch")), None)
    return version.partition("+")[0] if version else None


def where_to_type(command: str, python: str, comfyui: str, then: str = "") -> str:
    """A fix that changes `python`: on a Pod when it lies on ComfyUI's volume, else in the image."""
    if MASK in command:
        login = f"Where it says {MASK}, type the login that the requirements file has."
        then = f"{login} {then}".rstrip()
    volume = comfyui.rstrip("/").rpartition("/")[0]
    if volume and python.startswith(f"{volume}/"):
        return on_pod(command, volume, then)
    fix = f"`{command}`, as a RUN line in the image's Dockerfile (a Pod forgets it when it ends)."
    return f"{fix} {then}".rstrip()
