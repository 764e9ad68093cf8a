"""Facts and settings in, findings out: the list of all checks, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from bootstrap.comfyui import choose_allocator
from bootstrap.config import Settings
from bootstrap.config import variables as declared
from bootstrap.core.findings import Finding, unexpected
from bootstrap.core.text import as_on_pod
from bootstrap.doctor.checks.allocator import check_allocator
from bootstrap.doctor.checks.comfyui import check_comfyui, check_wanted_nodes
from bootstrap.doctor.checks.gpu import check_gpu, check_gpu_health
from bootstrap.doctor.checks.machine import check_machine, check_memory
from bootstrap.doctor.checks.models import check_models
from bootstrap.doctor.checks.requirements import check_requirements, check_torch
from bootstrap.doctor.checks.tokens import check_tokens
from bootstrap.doctor.checks.variables import check_environment, check_runpod
from bootstrap.doctor.checks.volume import check_presence, check_volume
from bootstrap.doctor.checks.volume_layout import check_case
from bootstrap.doctor.checks.volume_storage import check_throughput
from bootstrap.doctor.facts import Facts
from bootstrap.doctor.facts.machine import MachineFacts
from bootstrap.doctor.facts.volume_facts import VolumeFacts, VolumeState
from bootstrap.environment.imports import check_node_imports
from bootstrap.volume.args_file import check_args_file
from bootstrap.volume.links import conflicts

CODES = {"doctor.check_crashed": "A check crashed; the others still ran"}

MachineCheck = Callable[[MachineFacts, Settings, Mapping[str, str]], list[Finding]]


class Check(NamedTuple):
    """A check and its name; it finds nothing if its facts were not gathered."""

    name: str
    run: Callable[[Facts, Settings], list[Finding]]


def _of_machine(check: MachineCheck) -> Callable[[Facts, Settings], list[Finding]]:
    def run(facts: Facts, settings: Settings) -> list[Finding]:
        return check(facts.machine, settings, facts.env) if facts.machine else []

    return run


def _volume(facts: Facts, settings: Settings) -> list[Finding]:
    if facts.volume is None:
        return []
    missing = facts.volume.state is VolumeState.MISSING
    if missing and declared()["volume_path"].refused(facts.env):
        return []  # what VOLUME_PATH should have named is unknown, and that it is wrong is reported
    return check_volume(facts.volume, settings, facts.models)


def _case_of_folders(facts: Facts, _: Settings) -> list[Finding]:
    volume = facts.volume
    return [] if volume is None or check_presence(volume) else check_case(volume)


def _models(facts: Facts, _: Settings) -> list[Finding]:
    # Without volume and ComfyUI there is no place yet for a model to be missing from.
    nowhere = facts.layout is not None and facts.layout.comfyui is None
    if facts.models is None or (nowhere and not facts.models.roots):
        return []
    machine = facts.machine
    gpus = machine.gpu.visible if machine and machine.gpu else ()
    volume = facts.volume or VolumeFacts("")
    misspelt = volume.models.wrong_case
    return check_models(
        facts.models,
        gpu_memory=max((g.memory_total for g in gpus if g.memory_total), default=None),
        memory_limit=machine.memory.limit if machine and machine.memory else None,
        reported={*(link.path for link in volume.links), *(stray.path for stray in misspelt)},
        loose={stray.path: stray.belongs for stray in volume.models.loose},
    )


def _comfyui(facts: Facts, _: Settings) -> list[Finding]:
    if facts.comfyui is None:
        return []
    return [*check_comfyui(facts.comfyui, facts.packages), *check_args_file(facts.args)]


def _wanted_nodes(facts: Facts, _: Settings) -> list[Finding]:
    return check_wanted_nodes(facts.wanted_nodes) if facts.wanted_nodes else []


def _allocator(facts: Facts, settings: Settings) -> list[Finding]:
    if facts.machine is None:
        return []
    torch = facts.machine.torch.version if facts.machine.torch else None
    chosen = None
    if facts.flags:
        chosen = choose_allocator(facts.flags, settings.comfyui_args, torch, facts.env)
    return check_allocator(facts.machine, settings, facts.env, chosen)


def _node_imports(facts: Facts, _: Settings) -> list[Finding]:
    comfyui = facts.comfyui.path if facts.comfyui else ""
    return check_node_imports(facts.node_log, facts.packages, comfyui)


def _requirements(facts: Facts, settings: Settings) -> list[Finding]:
    if facts.comfyui is None or facts.judgement is None:
        return []
    return check_requirements(facts.comfyui, facts.judgement, settings.packages, facts.kept)


ALL_CHECKS: tuple[Check, ...] = (
    Check("volume", _volume),
    Check("models", _models),
    Check("case of model folders", _case_of_folders),
    Check("links to models", lambda facts, _: conflicts(facts.link_plan)),
    Check("comfyui", _comfyui),
    Check("wanted nodes", _wanted_nodes),
    Check("node imports", _node_imports),
    Check("requirements", _requirements),
    Check("GPU", _of_machine(check_gpu)),
    Check("GPU health", _of_machine(check_gpu_health)),
    Check("torch", _of_machine(check_torch)),
    Check("memory", _of_machine(check_memory)),
    Check("machine", _of_machine(check_machine)),
    Check("allocator", _allocator),
    Check("tokens", _of_machine(check_tokens)),
    Check("environment", _of_machine(check_environment)),
    Check("Runpod", _of_machine(check_runpod)),
    Check("throughput", lambda facts, _: check_throughput(facts.throughput)),
)


def run_checks(facts: Facts, settings: Settings) -> list[Finding]:
    """The findings of all checks, in order; one that crashes becomes a finding."""
    findings: list[Finding] = []
    for check in ALL_CHECKS:
        try:
            findings += check.run(facts, settings)
        except Exception as problem:  # noqa: BLE001  # one broken check must not spoil the others
            what = f"The check of {check.name}"
            findings.append(unexpected("doctor.check_crashed", what, problem, part=check.name))
    return [_typed_on_pod(finding) for finding in findings]


def _typed_on_pod(finding: Finding) -> Finding:
    """Those about the volume itself say where."""
    if finding.code.startswith(("volume.", "links.")):
        return finding
    return replace(finding, fix=as_on_pod(finding.fix))
