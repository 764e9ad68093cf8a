"""The Python that runs ComfyUI: which one, what it has and lacks, and how that is installed."""

from bootstrap.environment.node_packs import Requirements
from bootstrap.environment.package_set import (
    INSTALL,
    PackageContext,
    PackageSet,
    kept_set,
    prepare_packages,
)
from bootstrap.environment.package_store import Record
from bootstrap.environment.python_choice import Choice, choose_python, venvs_of
from bootstrap.environment.python_probe import (
    PROBE_SECONDS,
    TorchBuild,
    Venv,
    ask_help,
    oldest_driver,
    read_torch_build,
    version_numbers,
)
from bootstrap.environment.requirements import Judgement, judge
from bootstrap.environment.site_packages import PackagesFacts

__all__ = [
    "INSTALL",
    "PROBE_SECONDS",
    "Choice",
    "Judgement",
    "PackageContext",
    "PackageSet",
    "PackagesFacts",
    "Record",
    "Requirements",
    "TorchBuild",
    "Venv",
    "ask_help",
    "choose_python",
    "imports",
    "judge",
    "kept_set",
    "node_packs",
    "oldest_driver",
    "package_findings",
    "prepare_packages",
    "read_torch_build",
    "requirements",
    "site_packages",
    "venv_mirror",
    "venvs_of",
    "version_numbers",
]
