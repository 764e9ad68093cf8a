"""The Python that runs ComfyUI: which one, what it has and lacks, and how that is installed."""

from bootstrap.environment.choice import Choice, choose_python, venvs_of
from bootstrap.environment.judge import Judgement, judge
from bootstrap.environment.mirror import Mirror, MirrorRequest, mirror_venv, record_opened
from bootstrap.environment.package_set import (
    INSTALL,
    PackageSet,
    Place,
    kept_set,
    prepare_packages,
)
from bootstrap.environment.packs import Requirements
from bootstrap.environment.python import PROBE_SECONDS, Venv, ask_help
from bootstrap.environment.site_packages import PackagesFacts
from bootstrap.environment.store import Record

__all__ = [
    "INSTALL",
    "PROBE_SECONDS",
    "Choice",
    "Judgement",
    "Mirror",
    "MirrorRequest",
    "PackageSet",
    "PackagesFacts",
    "Place",
    "Record",
    "Requirements",
    "Venv",
    "ask_help",
    "choose_python",
    "imports",
    "judge",
    "kept_set",
    "mirror_venv",
    "packs",
    "prepare_packages",
    "record_opened",
    "report",
    "requirement_files",
    "site_packages",
    "torch_build",
    "venvs_of",
]
