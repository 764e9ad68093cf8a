"""Requirements compared with what is installed: each finding, and its fix run with a real pip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks import requirements as checks
from bootstrap.doctor.checks.requirements import MOST_PACKS, check_requirements
from bootstrap.doctor.facts import Facts
from bootstrap.doctor.facts.comfyui import ComfyUIFacts, gather_comfyui
from bootstrap.environment import Judgement, PackagesFacts, judge, requirements_child
from bootstrap.environment.imports import ALIKE, MODULES, hard_imports
from bootstrap.environment.node_packs import Pack, RequirementFile
from bootstrap.environment.package_store import Record
from bootstrap.environment.python_probe import Failure, PythonTrouble
from bootstrap.environment.requirements import RequirementState, Verdict
from bootstrap.environment.site_packages import Package
from tests.bootstrap.environment.venvs import gather_packages

PYTHON = "/opt/comfyui/bin/python"
MARKERS = {"python_version": "3.11", "python_full_version": "3.11.7", "sys_platform": "linux"}
# Of ComfyUI 0.3.75.
OWN = """
comfyui-frontend-package==1.32.9
torch
torchvision
torchaudio
numpy>=1.25.0
transformers>=4.50.3
aiohttp>=3.11.8
kornia>=0.7.1
"""
PINNED = ("torch", "torchvision", "numpy", "transformers", "aiohttp")
INSTALLED = {
    "comfyui-frontend-package": "1.32.9",
    "pip": "25.0",
    "torch": "2.9.1+cu128",
    "torchvision": "0.24.1",
    "torchaudio": "2.9.1",
    "numpy": "2.2.0",
    "transformers": "4.57.6",
    "aiohttp": "3.14.5",
    "kornia": "0.8.0",
    **{e.distribution: "1.0" for e in hard_imports("0.3.75") if e.module not in PINNED},
}
STAND_INS = frozenset({"torchvision"})


def comfyui(own: str = OWN, **packs: str) -> ComfyUIFacts:
    """Facts of a ComfyUI whose packs have these requirements."""
    home = "/runpod-volume/ComfyUI"
    return ComfyUIFacts(
        home,
        version="0.3.75",
        own=file_of("ComfyUI", home, own),
        packs=tuple(
            Pack(
                name,
                f"{home}/custom_nodes/{name}",
                requirements=file_of(name, f"{home}/custom_nodes/{name}", text),
            )
            for name, text in packs.items()
        ),
    )


def file_of(owner: str, folder: str, text: str) -> RequirementFile:
    lines = [line.partition("  #")[0].removeprefix("-e ") for line in text.splitlines() if line]
    return RequirementFile(owner, f"{folder}/requirements.txt", tuple(lines))


@dataclass(frozen=True)
class Have:
    """An interpreter and what is there: `modules` without a record."""

    facts: PackagesFacts
    modules: frozenset[str] = frozenset()
    judged_with: str | None = "packaging"


def packages(python: str = PYTHON, **changes: str | None) -> Have:
    """The installed packages, with changes; None removes a package."""
    have = {**INSTALLED, **{name.replace("_", "-"): v for name, v in changes.items()}}
    listed = tuple(Package(n, v, "/site") for n, v in have.items() if v is not None)
    return Have(PackagesFacts(python, version="3.11.7", markers=MARKERS, packages=listed))


def without(name: str) -> Have:
    """The installed packages except one."""
    gone: dict[str, Any] = {name.replace("-", "_"): None}
    return packages(**gone)


def judged(facts: ComfyUIFacts, have: Have) -> Judgement:
    """As the child judges, with packages that do not exist."""
    installed = {p.name: p for p in reversed(have.facts.packages)}
    there = {
        n: {"name": n, "version": p.version, "versions": [p.version], "requires": []}
        for n, p in installed.items()
    }
    judge = requirements_child.Judge(SimpleNamespace(by_name=there), ALIKE, MODULES)  # type: ignore[arg-type]
    verdicts = [
        Verdict(file.owner, v["text"], v["name"], RequirementState(v["state"]), v["version"])
        for file in facts.asked.files
        for v in map(judge.line, file.lines)
    ]
    hard = hard_imports(facts.version)
    return Judgement(
        have.facts,
        facts.version,
        have.judged_with,
        {n: p.version for n, p in installed.items()},
        tuple(verdicts),
        tuple(e for e in hard if e.distribution not in there and e.module not in have.modules),
    )


@pytest.fixture(autouse=True)
def nothing_else_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged here runs in this Python, whose packages do not count."""
    monkeypatch.setattr(requirements_child, "can_import", lambda module: module in STAND_INS)


def check(facts: ComfyUIFacts, have: Have, mode: str = "report") -> list[Finding]:
    return check_requirements(facts, judged(facts, have), mode)


def found(facts: ComfyUIFacts, have: Have, mode: str = "report") -> dict[str, Finding]:
    return {f.code: f for f in check(facts, have, mode)}


def serious(findings: dict[str, Finding]) -> list[str]:
    return [c for c, f in findings.items() if f.severity.rank >= Severity.WARNING.rank]


def test_all_is_there() -> None:
    reported = found(comfyui(Pack="numpy<3\n"), packages())
    assert list(reported) == ["comfyui.requirements_met", "nodes.requirements_met"]
    assert {f.severity for f in reported.values()} == {Severity.OK}


@pytest.mark.parametrize("name", ["aiohttp", "torchvision", "transformers", "numpy"])
def test_without_it_comfyui_cannot_start(name: str) -> None:
    reported = found(comfyui(), without(name))
    assert reported["comfyui.requirement_missing"].severity is Severity.ERROR
    assert serious(reported) == ["comfyui.requirement_missing"]
    assert f"{PYTHON} -m pip install" in reported["comfyui.requirement_missing"].fix


def test_without_it_only_some_nodes_are_missing() -> None:
    reported = found(comfyui(), packages(torchaudio=None, kornia=None))
    assert serious(reported) == ["comfyui.requirement_wanted"]
    finding = reported["comfyui.requirement_wanted"]
    assert finding.severity is Severity.WARNING
    # torchaudio must not bring another torch.
    assert f"{PYTHON} -m pip install torchaudio 'kornia>=0.7.1' torch==2.9.1" in finding.fix


def test_a_wrong_version() -> None:
    reported = found(comfyui(), packages(transformers="4.40.0"))
    assert serious(reported) == ["comfyui.requirement_version"]
    assert (
        "transformers>=4.50.3 (4.40.0 is installed)"
        in reported["comfyui.requirement_version"].message
    )


def test_the_page_is_not_needed() -> None:
    reported = found(comfyui(), packages(comfyui_frontend_package=None))
    assert reported["comfyui.front_end_packages"].severity is Severity.INFO
    assert serious(reported) == []


def test_a_stand_in_without_a_record_is_not_an_alarm() -> None:
    have = replace(packages(torchvision=None), modules=STAND_INS)
    reported = found(comfyui(), have)
    assert serious(reported) == []
    assert reported["python.package_untracked"].severity is Severity.INFO
    assert "torchvision" in reported["python.package_untracked"].message


def test_a_pack_is_named_with_a_line_for_the_right_interpreter() -> None:
    facts = comfyui(Alpha="numpy<2  # old\nsome-thing[x]>=1,<2\n", Beta="numpy\n")
    reported = found(facts, packages())
    assert serious(reported) == ["nodes.requirements_unmet"]
    finding = reported["nodes.requirements_unmet"]
    assert finding.details["pack"] == "Alpha"
    assert "numpy<2 (2.2.0 is installed)" in finding.message
    assert f"`{PYTHON} -m pip install 'numpy<2' 'some-thing[x]<2,>=1'`" in finding.fix
    assert "Dockerfile" in finding.fix


def test_an_interpreter_on_the_volume_is_fixed_on_a_pod() -> None:
    facts = comfyui(Alpha="missing\n")
    reported = found(facts, packages("/runpod-volume/my venv/bin/python"))
    fix = reported["nodes.requirements_unmet"].fix
    assert "'/workspace/my venv/bin/python' -m pip install missing" in fix
    assert fix.startswith("On a Pod")
    assert "/workspace" in fix


def test_pip_is_brought_first_where_there_is_none_and_debians_guard_passed() -> None:
    facts = comfyui(Alpha="missing\n")
    fix = found(facts, packages(pip=None))["nodes.requirements_unmet"].fix
    assert f"{PYTHON} -m ensurepip && {PYTHON} -m pip install missing" in fix
    managed = replace(packages().facts, managed=True)
    fix = found(facts, Have(managed))["nodes.requirements_unmet"].fix
    assert "pip install --break-system-packages missing" in fix


def test_an_install_script_is_mentioned() -> None:
    facts = comfyui(Alpha="missing\n")
    facts = replace(facts, packs=(replace(facts.packs[0], install_script=True),))
    assert f"{PYTHON} install.py" in found(facts, packages())["nodes.requirements_unmet"].fix


@pytest.mark.parametrize("wish", ["torch==2.1.0", "torch==2.9.1+cu121", "torchaudio<2.4"])
def test_a_pack_that_would_replace_torch(wish: str) -> None:
    reported = found(comfyui(Alpha=f"{wish}\nnumpy\n"), packages())
    assert serious(reported) == ["nodes.torch_conflict"]
    fix = reported["nodes.torch_conflict"].fix
    assert f"{PYTHON} -m pip install -r /runpod-volume/" in fix
    assert "requirements.txt torch==2.9.1" in fix


def test_the_installed_torch_is_what_a_pack_without_local_version_means() -> None:
    assert serious(found(comfyui(Alpha="torch==2.9.1\n"), packages())) == []


def test_many_packs_share_a_finding() -> None:
    facts = comfyui(**{f"Pack{n:02}": f"missing{n}\n" for n in range(MOST_PACKS + 7)})
    reported = check(facts, packages())
    codes = [f.code for f in reported]
    assert codes.count("nodes.requirements_unmet") == MOST_PACKS
    (more,) = [f for f in reported if f.code == "nodes.requirements_more"]
    assert "7 more node packs" in more.message
    assert "missing16" in more.fix


def test_nothing_is_said_to_be_met_where_something_is_missing_or_nothing_is_known() -> None:
    facts = comfyui()
    assert "comfyui.requirements_met" in found(facts, packages())
    assert "comfyui.requirements_met" not in found(facts, packages(aiohttp=None))
    assert "comfyui.requirements_met" not in found(replace(facts, own=None), packages())


def test_disabled_packs_ask_for_nothing() -> None:
    facts = comfyui(Alpha="missing\n")
    facts = replace(facts, packs=(replace(facts.packs[0], disabled=True),))
    assert list(found(facts, packages())) == ["comfyui.requirements_met"]


def test_an_interpreter_that_cannot_be_used_is_said_once_elsewhere() -> None:
    broken = PackagesFacts(PYTHON, Failure(PythonTrouble.MISSING, "there is no such file"))
    assert check(comfyui(Alpha="missing\n"), Have(broken)) == []
    other = replace(packages().facts, other_versions=("3.10",), packages=())
    assert check(comfyui(), Have(other)) == []


def test_what_a_worker_installs_at_its_start_is_not_an_alarm() -> None:
    facts = comfyui(Alpha="missing\nnumpy<2\n")
    reported = found(facts, packages(aiohttp=None, comfyui_frontend_package=None), "install")
    assert list(reported) == ["packages.to_install", "comfyui.front_end_packages"]
    finding = reported["packages.to_install"]
    assert finding.severity is Severity.INFO
    assert finding.details["missing"] == {
        "ComfyUI": ["aiohttp>=3.11.8"],
        "Alpha": ["missing", "numpy<2 (2.2.0 is installed)"],
    }
    reported = found(comfyui(Alpha="numpy\n"), packages(), "install")
    assert list(reported) == ["comfyui.requirements_met", "nodes.requirements_met"]


def test_a_kept_set_counts() -> None:
    facts = comfyui(Alpha="missing\nnumpy<2\n")
    judgement = judged(facts, packages(aiohttp=None))
    unmet = [v for v in judgement.unmet if v.text == "numpy<2"]
    record = Record({"aiohttp": "3.12", "missing": "1"}, {}, ("aiohttp",), {"numpy<2": "no"}, unmet)
    kept = record, Path("/volume/set.zip")
    reported = {f.code: f for f in check_requirements(facts, judgement, "install", kept)}
    assert list(reported) == ["packages.installed", "packages.conflict"]
    assert reported["packages.conflict"].details["owner"] == "Alpha"
    assert "numpy<2 (2.2.0 is installed): no" in reported["packages.conflict"].message
    assert "aiohttp 3.12" in reported["packages.installed"].message


def test_without_a_judge_it_is_said() -> None:
    reported = found(comfyui(), replace(packages(torch=None), judged_with=None))
    assert list(reported) == ["packages.not_judged", "comfyui.requirement_missing"]


def test_a_pack_cannot_put_a_command_into_a_fix() -> None:
    evil = "x @ https://example.org/$(id>/tmp/x)\n-e git+https://e.org/`id`#egg=y\n"
    fix = found(comfyui(Alpha=evil), packages())["nodes.requirements_unmet"].fix
    assert "'x @ https://example.org/$(id>/tmp/x)'" in fix
    assert "'git+https://e.org/`id`#egg=y'" in fix


def test_every_code_is_met_above() -> None:
    source = Path(__file__).read_text("utf-8")
    own = {code for code in checks.CODES if not code.startswith("gpu.")}  # test_checks_torch.py
    assert {code for code in own if source.count(code) == 0} == set()


def wheel(folder: Path, name: str, version: str) -> None:
    """A package with an empty module, as pip installs it."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{name}/__init__.py", "")
        file.writestr(f"{info}/RECORD", "")


def test_the_fixes_typed_into_a_real_pip_fix_it(tmp_path: Path) -> None:
    volume, wheels = tmp_path / "my volume", tmp_path / "wheels"
    wheels.mkdir()
    for name, version in (("torch", "2.9.1"), ("torch", "2.1.0"), ("torchaudio", "2.9.1")):
        wheel(wheels, name, version)
    for name, version in (("einops", "0.8"), ("numpy", "1.26.4"), ("numpy", "2.2.0")):
        wheel(wheels, name, version)
    python = volume / "venv" / "bin" / "python"
    env = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    subprocess.run([sys.executable, "-m", "venv", str(volume / "venv")], check=True)
    command = [str(python), "-m", "pip", "install", "-q", "torch==2.9.1", "numpy==2.2.0"]
    subprocess.run(command, check=True, env=env, stderr=subprocess.DEVNULL)
    site = next((volume / "venv" / "lib").glob("python3*")) / "site-packages"
    home = volume / "ComfyUI"
    pack = home / "custom_nodes" / "a pack"
    pack.mkdir(parents=True)
    (home / "requirements.txt").write_text("torch\ntorchaudio\neinops\n")
    (home / "comfyui_version.py").write_text('__version__ = "0.3.75"\n')
    (pack / "__init__.py").touch()
    (pack / "requirements.txt").write_text("torch==2.1.0\nnumpy<2\n")

    def look() -> dict[str, Finding]:
        facts = gather_comfyui(home)
        findings = check_requirements(facts, judge(python, env, facts.asked), "report")
        return {f.code: f for f in findings}

    for each in hard_imports("0.3.75"):  # all but what is installed by the fixes
        if each.module not in ("torch", "einops", "numpy"):
            (site / each.module).mkdir(exist_ok=True)
            (site / each.module / "__init__.py").touch()
    expected = "comfyui.requirement_missing comfyui.requirement_wanted "
    expected += "nodes.torch_conflict nodes.requirements_unmet"
    assert serious(look()) == expected.split()
    for finding in look().values():
        typed = re.search(r"`([^`]+)`", finding.fix)
        if typed and finding.severity.rank >= Severity.WARNING.rank:
            subprocess.run(["bash", "-c", typed[1]], check=True, env=env, capture_output=True)
    assert serious(look()) == []
    assert gather_packages(python).versions_of("torch") == ("2.9.1",)
    assert gather_packages(python).versions_of("numpy") == ("1.26.4",)


def test_a_login_in_a_requirement_is_never_reported() -> None:
    secret = "marker-5e1f"
    lines = (
        f"private @ git+https://me:{secret}@git.example.org/private.git\n"
        f"other @ https://{secret}@example.org/other-2.7.0.whl\n"
    )
    facts = comfyui(OWN + lines, pack=lines)
    found = check(facts, packages())
    reported = next(f for f in found if f.code == "nodes.requirements_unmet")
    assert "private @ git+https://***@git.example.org/private.git" in reported.message
    assert "type the login" in reported.fix and "git+https://***@git" in reported.fix
    assert "comfyui.requirement_wanted" in {f.code for f in found}
    everything = Facts({}, comfyui=facts).as_dict()
    assert secret not in repr([found, everything])
    assert "private @" in repr(everything)
