"""The Python that runs ComfyUI: which one, what it has, what it lacks and how it gets that."""

from bootstrap.environment.judge import Judgement, gather_packages, judge
from bootstrap.environment.package_set import (
    INSTALL,
    PackageSet,
    Place,
    kept_set,
    prepare_packages,
)
from bootstrap.environment.python import Venv, ask_help, choose_python, look_at_venv, may_be_venv
from bootstrap.environment.requirements import Requirements, read_requirements
from bootstrap.environment.site_packages import PackagesFacts
from bootstrap.environment.store import Record

__all__ = [
    "INSTALL",
    "Judgement",
    "PackageSet",
    "PackagesFacts",
    "Place",
    "Record",
    "Requirements",
    "Venv",
    "ask_help",
    "choose_python",
    "gather_packages",
    "imports",
    "judge",
    "kept_set",
    "look_at_venv",
    "may_be_venv",
    "packs",
    "pip_text",
    "prepare_packages",
    "read_requirements",
    "report",
    "requirement_files",
    "requirements",
]
