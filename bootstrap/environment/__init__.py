"""The Python that runs ComfyUI: which one, what it has, what it lacks and how it gets that."""

from bootstrap.environment.choice import choose_python, venvs_of
from bootstrap.environment.python import Venv, ask_help
from bootstrap.environment.site_packages import PackagesFacts, gather_packages

__all__ = [
    "PackagesFacts",
    "Venv",
    "archive",
    "ask_help",
    "choose_python",
    "gather_packages",
    "imports",
    "install",
    "judge",
    "packs",
    "pip_text",
    "requirements",
    "torch_build",
    "venvs_of",
]
