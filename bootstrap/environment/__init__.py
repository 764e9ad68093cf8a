"""The Python that runs ComfyUI: which one, what it has and lacks, and how that is installed."""

from bootstrap.environment.node_packs import Requirements
from bootstrap.environment.package_set import (
    INSTALL,
    PackageSet,
    Place,
    kept_set,
    prepare_packages,
)
from bootstrap.environment.package_store import Record
from bootstrap.environment.python_choice import Choice, choose_python, venvs_of
from bootstrap.environment.python_probe import PROBE_SECONDS, Venv, ask_help
from bootstrap.environment.requirements import Judgement, judge
from bootstrap.environment.site_packages import PackagesFacts
from bootstrap.environment.venv_mirror import Mirror, MirrorRequest, mirror_venv, record_opened

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
    "node_packs",
    "package_findings",
    "prepare_packages",
    "record_opened",
    "requirement_files",
    "requirements",
    "site_packages",
    "torch_build",
    "venvs_of",
]
