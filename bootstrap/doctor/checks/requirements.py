"""Compares ComfyUI's and each node pack's requirements with what its interpreter has; and its torch
with the driver and the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, host_error, info, ok, warning
from bootstrap.core.text import joined, pluralize, printable, shell_quote, summarize_list
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.comfyui import ComfyUIFacts
from bootstrap.doctor.facts.gpu import GpuDevice, GpuFacts
from bootstrap.doctor.facts.machine import MachineFacts
from bootstrap.environment import (
    INSTALL,
    Judgement,
    PackagesFacts,
    Record,
    TorchBuild,
    oldest_driver,
    package_findings,
    version_numbers,
)
from bootstrap.environment.node_packs import Pack
from bootstrap.environment.requirements import RequirementState, Verdict
from bootstrap.environment.site_packages import pip_install, public_torch, where_to_type

CODES = {
    "comfyui.requirement_wanted": "A package that some of ComfyUI's own nodes need is missing",
    "comfyui.requirement_version": "A package has another version than ComfyUI requires",
    "comfyui.front_end_packages": "ComfyUI's web interface lacks packages; no job needs them",
    "comfyui.requirements_met": "Everything that ComfyUI requires is installed",
    "python.package_untracked": "A package can be imported, but pip has no record of it",
    "nodes.requirements_unmet": "A node pack's requirements are not installed",
    "nodes.requirements_more": "Further node packs lack requirements",
    "nodes.torch_conflict": "A node pack requires another torch than the installed one",
    "packages.to_install": "Required packages are missing; a worker installs them when it starts",
    "nodes.requirements_met": "Everything that the node packs require is installed",
    "gpu.torch_good": "ComfyUI's torch fits the driver and the GPU",
    "gpu.torch_unknown": "ComfyUI's torch was not found, so it was not checked against the GPU",
    "gpu.torch_without_cuda": "The machine has a GPU, but ComfyUI's torch was built without CUDA",
    "gpu.driver_old": "The driver is too old for the CUDA version of ComfyUI's torch",
    "gpu.torch_too_old": "ComfyUI's torch has no code for this GPU, which is newer",
    "gpu.torch_too_new": "ComfyUI's torch no longer has code for this GPU",
}
# So many packs get a finding each; the rest share one.
MOST_PACKS = 10
TORCH = frozenset({"torch", "torchvision", "torchaudio"})
_MET = "All that ComfyUI needs for jobs is installed."


def check_requirements(
    comfyui: ComfyUIFacts,
    judgement: Judgement,
    mode: str = INSTALL,
    kept: tuple[Record, Path] | None = None,
) -> list[Finding]:
    """Unmet requirements of ComfyUI and its nodes; none if the interpreter cannot be used at all,
    which another check reports. `mode` is PACKAGES, `kept` the package set that a worker uses, and
    its file: its contents are reported as by the worker."""
    if not judgement.packages.usable or comfyui.silent_after is not None:
        return []
    if judgement.judged_with is None:
        return [*package_findings.not_ready(judgement), *package_findings.cannot_start(judgement)]
    if kept is not None:
        return [*package_findings.with_set(judgement, *kept), *_noted(judgement, comfyui)]
    if mode == INSTALL and judgement.unmet:
        return [_to_install(judgement), *_noted(judgement, comfyui)]
    return [*_of_comfyui(comfyui, judgement), *_of_packs(comfyui, judgement)]


def _to_install(judgement: Judgement) -> Finding:
    """For a Pod, for a worker before its start, and for one that could not keep a set."""
    owners: dict[str, list[str]] = {}
    for verdict in judgement.unmet:
        owners.setdefault(verdict.owner, []).append(str(verdict))
    texts = [f"{printable(owner)}: {summarize_list(asked)}" for owner, asked in owners.items()]
    return info(
        "packages.to_install",
        f"{printable(judgement.packages.python)} lacks requirements; a worker installs them at its "
        f"start (PACKAGES=install): {joined(texts, 10, '; ', 'more custom nodes')}.",
        missing={owner: asked[:50] for owner, asked in list(owners.items())[:200]},
    )


def _noted(judgement: Judgement, comfyui: ComfyUIFacts) -> list[Finding]:
    core = [v for v in judgement.verdicts if v.core]
    untracked = [v for v in core if v.state is RequirementState.UNTRACKED]
    page = [v for v in core if v.page]
    return [*_untracked(untracked, judgement.packages), *_page(page)]


def _of_comfyui(comfyui: ComfyUIFacts, judgement: Judgement) -> list[Finding]:
    lacking = [*package_findings.cannot_start(judgement), *_core(comfyui, judgement)]
    met = [] if lacking or comfyui.own is None else [ok("comfyui.requirements_met", _MET)]
    return [*lacking, *_noted(judgement, comfyui), *met]


def _core(comfyui: ComfyUIFacts, judgement: Judgement) -> list[Finding]:
    found = []
    packages = judgement.packages
    hard = {each.distribution for each in judgement.absent}
    core = [v for v in judgement.unmet if v.core and v.name not in hard]
    wanted = [v for v in core if v.state is RequirementState.MISSING]
    wrong = [v for v in core if v.state is RequirementState.WRONG]
    if wanted:
        found.append(
            warning(
                "comfyui.requirement_wanted",
                f"{printable(packages.python)} lacks {_texts(wanted)}: ComfyUI starts, but nodes "
                "that need them are missing.",
                _install(wanted, comfyui, packages),
                **_details(wanted),
            )
        )
    if wrong:
        found.append(
            warning(
                "comfyui.requirement_version",
                f"This ComfyUI requires {_texts(wrong)} in {printable(packages.python)}.",
                _install(wrong, comfyui, packages),
                **_details(wrong),
            )
        )
    return found


def _untracked(judged: Sequence[Verdict], packages: PackagesFacts) -> Iterator[Finding]:
    if not judged:
        return
    names = summarize_list([j.name for j in judged])
    yield info(
        "python.package_untracked",
        f"{names} can be imported by {printable(packages.python)}, but pip has no record of it: a "
        "stand-in or a copy of unknown version.",
        f"If nodes fail that use it: `{_line(judged, packages)}`.",
        **_details(judged),
    )


def _page(judged: Sequence[Verdict]) -> Iterator[Finding]:
    if not judged:
        return
    yield info(
        "comfyui.front_end_packages",
        f"{_texts(judged)}: not installed as required. They are ComfyUI's web page; the worker "
        "gives it a page of its own, and jobs need none.",
        **_details(judged),
    )


def _of_packs(comfyui: ComfyUIFacts, judgement: Judgement) -> list[Finding]:
    packages = judgement.packages
    packs = {pack.name: pack for pack in comfyui.active}
    asking = {v.owner for v in judgement.verdicts if not v.core}
    bad: dict[str, list[Verdict]] = {}
    for verdict in judgement.unmet:
        if not verdict.core:
            bad.setdefault(verdict.owner, []).append(verdict)
    unmet: list[tuple[Pack, list[Verdict]]] = []
    found: list[Finding] = []
    for owner, verdicts in bad.items():
        wrong = [v for v in verdicts if v.state is RequirementState.WRONG]
        torch = [v for v in wrong if v.name in TORCH]
        if torch and len(found) < MOST_PACKS:
            found.append(_torch_conflict(packs[owner], torch, comfyui, packages))
        if rest := [v for v in verdicts if v not in torch]:
            unmet.append((packs[owner], rest))
    found += [_unmet(pack, rest, comfyui, packages) for pack, rest in unmet[:MOST_PACKS]]
    if unmet[MOST_PACKS:]:
        found.append(_more(unmet[MOST_PACKS:], comfyui, packages))
    if asking and not found:
        met = f"All that {pluralize(len(asking), 'node pack')} with requirements ask for is there."
        return [ok("nodes.requirements_met", met)]
    return found


def _unmet(
    pack: Pack, bad: Sequence[Verdict], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    then = ""
    if pack.install_script:
        script = shell_quote(packages.python, "install.py")
        then = f"It also has an install script: `cd {shell_quote(pack.path)} && {script}`."
    return warning(
        "nodes.requirements_unmet",
        f"The node pack {printable(pack.name)} needs {_texts(bad)}, which "
        f"{printable(packages.python)} does not have.",
        _install(bad, comfyui, packages, then),
        pack=printable(pack.name),
        **_details(bad),
    )


def _torch_conflict(
    pack: Pack, torch: Sequence[Verdict], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    file = pack.requirements.path if pack.requirements else pack.path
    # Requirements outside the new file are dropped; the old file stays as .bak.
    script = "/^[[:space:]]*(torch|torchvision|torchaudio)([^A-Za-z0-9_.-]|$)/Id"
    flags = ["--break-system-packages"] if packages.managed else []
    kept = public_torch(packages)
    pins = [f"torch=={kept}"] if kept else []
    pip = shell_quote(packages.python, "-m", "pip", "install", *flags, "-r", file, *pins)
    command = f"{shell_quote('sed', '-i.bak', '-E', script, file)} && {pip}"
    if file.endswith("pyproject.toml"):
        command = shell_quote("mv", pack.path, f"{pack.path}.disabled")
    return warning(
        "nodes.torch_conflict",
        f"The node pack {printable(pack.name)} asks for {_texts(torch)}: installing its "
        "requirements as they are would replace torch and can break all other nodes.",
        where_to_type(command, packages.python, comfyui.path, "That leaves torch unchanged."),
        pack=printable(pack.name),
        **_details(torch),
    )


def _more(
    unmet: Sequence[tuple[Pack, list[Verdict]]], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    every = [j for _, bad in unmet for j in bad if j.state is RequirementState.MISSING][:50]
    every = every or [j for _, bad in unmet for j in bad][:50]
    return warning(
        "nodes.requirements_more",
        f"{pluralize(len(unmet), 'more node pack lacks', 'more node packs lack')} requirements: "
        f"{summarize_list([pack.name for pack, _ in unmet], 20)}.",
        _install(every, comfyui, packages, "Then check again."),
        packs=[printable(pack.name) for pack, _ in unmet[:200]],
    )


def _install(
    judged: Sequence[Verdict], comfyui: ComfyUIFacts, packages: PackagesFacts, then: str = ""
) -> str:
    return where_to_type(_line(judged, packages), packages.python, comfyui.path, then)


def _line(judged: Sequence[Verdict], packages: PackagesFacts) -> str:
    return pip_install(packages, [(j.name, j.text) for j in judged])


def _texts(judged: Sequence[Verdict]) -> str:
    return summarize_list([str(j) for j in judged], 8)


def _details(judged: Sequence[Verdict]) -> dict[str, list[dict[str, str | None]]]:
    return {
        "requirements": [
            {"name": j.name, "wanted": j.text, "installed": j.version} for j in judged[:50]
        ]
    }


# The first CUDA whose compiler knows GPUs of that compute capability, for generations on which a
# torch without their code cannot run at all: 9 Hopper, 10 and 12 Blackwell. Ada (8.9) runs Ampere's
# code. Source: the compiler's "new features" in the CUDA release notes 11.8 and 12.8.
FIRST_CUDA = {8: (11, 0), 9: (11, 8), 10: (12, 8), 11: (13, 0), 12: (12, 8)}
# CUDA 13 removed Maxwell, Pascal and Volta. Source: CUDA Toolkit 13.0 release notes.
OLDEST_CAPABILITY_OF_13 = (7, 5)


def check_torch(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about torch versus driver and GPU; none without a GPU or if none is expected."""
    gpu = facts.gpu
    if gpu is None or not gpu.visible or not gpu_expectation(gpu, settings, env).expected:
        return []
    if facts.torch is None or facts.torch.version is None:
        return [info("gpu.torch_unknown", "ComfyUI's torch was not found, so it was not compared.")]
    python = str(settings.comfyui_python or "python")
    return check_torch_build(facts.torch, gpu, python)


def check_torch_build(build: TorchBuild, gpu: GpuFacts, python: str = "python") -> list[Finding]:
    """The same for one torch; `python` is the interpreter in the fixes."""
    if build.cuda is None:
        return [_without_cuda(build, python)]
    cuda = version_numbers(build.cuda)
    found = [f for f in (_driver(build, gpu, cuda),) if f]
    for device in gpu.visible:
        found += [f for f in (_capability(build, device, cuda, python),) if f]
    return found or [
        ok("gpu.torch_good", f"torch {build.version} (CUDA {build.cuda}) fits driver and GPU.")
    ]


def _without_cuda(build: TorchBuild, python: str) -> Finding:
    kind = "for AMD (ROCm)" if build.hip else "without CUDA"
    return error(
        "gpu.torch_without_cuda",
        f"ComfyUI's torch {build.version} is a build {kind}; ComfyUI exits at start with "
        "'Torch not compiled with CUDA enabled'.",
        f"`{python} -m pip install --force-reinstall torch torchvision torchaudio` (on Linux that "
        "is the CUDA build), or set COMFYUI_ARGS to `--cpu`.",
        torch=build.version,
    )


def _driver(build: TorchBuild, gpu: GpuFacts, cuda: tuple[int, ...]) -> Finding | None:
    needed = oldest_driver(cuda)
    have = version_numbers(gpu.driver_version or "")
    if not needed or not have or have >= needed:
        return None
    wanted = ".".join(f"{n:02d}" for n in needed)
    # Another machine of the same endpoint may have a newer driver, so this one is unfit.
    return host_error(
        "gpu.driver_old",
        f"torch {build.version} is built for CUDA {build.cuda}, which needs driver {wanted} or "
        f"newer; this machine has {gpu.driver_version} (CUDA {gpu.cuda_driver_version}).",
        f"Let only machines with CUDA {build.cuda} or newer be chosen: Edit Endpoint > Advanced > "
        "Allowed CUDA versions (on a Pod: filter by CUDA version when deploying).",
        driver=gpu.driver_version,
        cuda=build.cuda,
    )


def _capability(
    build: TorchBuild, device: GpuDevice, cuda: tuple[int, ...], python: str
) -> Finding | None:
    capability = device.compute_capability
    if capability is None or _runs_on(cuda, capability):
        return None
    label = f"{device.name or 'this GPU'} (compute capability {capability[0]}.{capability[1]})"
    message = f"torch {build.version}, built for CUDA {build.cuda}, has no code for {label}"
    too_old = capability >= OLDEST_CAPABILITY_OF_13
    if too_old:
        first = ".".join(str(n) for n in FIRST_CUDA.get(capability[0], (13, 0)))
        return error(
            "gpu.torch_too_old",
            f"{message}: jobs fail with 'no kernel image is available for execution'.",
            f"Install a torch built for CUDA {first} or newer: `{python} -m pip install --upgrade "
            "torch torchvision torchaudio`; or choose an older GPU type in Edit Endpoint.",
            capability=list(capability),
        )
    return error(
        "gpu.torch_too_new",
        f"{message}: jobs fail with 'no kernel image is available for execution'.",
        f"Choose a newer GPU type in Edit Endpoint, or install an older torch: `{python} "
        "-m pip install 'torch<2.8' torchvision torchaudio`.",
        capability=list(capability),
    )


def _runs_on(cuda: tuple[int, ...], capability: tuple[int, int]) -> bool:
    first = FIRST_CUDA.get(capability[0], (0, 0))
    return cuda[:2] >= first and (cuda[:1] < (13,) or capability >= OLDEST_CAPABILITY_OF_13)
