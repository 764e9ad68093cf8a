"""What ComfyUI and each node pack require, against what its interpreter has installed."""

from __future__ import annotations

from collections.abc import Sequence

from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import counted, named, shown, typed
from bootstrap.doctor.facts.comfyui import ComfyUIFacts
from bootstrap.environment import PackagesFacts
from bootstrap.environment.judge import Judged, Verdict, judge
from bootstrap.environment.packs import Pack
from bootstrap.environment.pip_text import pip_install, public_torch, where_to_type

CODES = {
    "comfyui.requirement_missing": "A package that ComfyUI cannot start without is missing.",
    "comfyui.requirement_wanted": "A package that some of ComfyUI's own nodes need is missing.",
    "comfyui.requirement_version": "A package has another version than ComfyUI requires.",
    "comfyui.front_end_packages": "Packages of ComfyUI's web page are missing; no job needs it.",
    "comfyui.requirements_met": "All that ComfyUI requires is installed.",
    "python.package_untracked": "A package can be imported, but pip has no record of it.",
    "nodes.requirements_unmet": "A node pack's requirements are not installed.",
    "nodes.requirements_more": "Further node packs lack requirements.",
    "nodes.torch_conflict": "A node pack asks for another torch than the one installed.",
    "nodes.requirements_met": "All that the node packs require is installed.",
}
# A finding each for so many packs; the rest share one.
MOST_PACKS = 10
# Each was hidden from ComfyUI 0.3.75, which then ended with code 1 before it answered; without
# any of the others it started (torchaudio, sentencepiece, alembic, SQLAlchemy, pydantic, kornia …).
CANNOT_START_WITHOUT = frozenset(
    "aiohttp av einops numpy pillow psutil pyyaml safetensors scipy tokenizers torch torchsde "
    "torchvision tqdm transformers yarl".split()
)
TORCH = frozenset({"torch", "torchvision", "torchaudio"})
_FRONT_END = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")


def check_requirements(comfyui: ComfyUIFacts, packages: PackagesFacts) -> list[Finding]:
    """Findings about missing packages and wrong versions; none where the interpreter cannot be
    used at all, which is another check's to say."""
    if not packages.usable or comfyui.silent_after is not None:
        return []
    return [*_of_comfyui(comfyui, packages), *_of_packs(comfyui, packages)]


def _of_comfyui(comfyui: ComfyUIFacts, packages: PackagesFacts) -> list[Finding]:
    if comfyui.wishes is None:
        return []
    judged = [judge(r, packages) for r in comfyui.wishes.requirements]
    front_end = [j for j in judged if j.name.startswith(_FRONT_END)]
    core = [j for j in judged if j not in front_end]
    missing = [j for j in core if j.verdict is Verdict.MISSING]
    hard = [j for j in missing if j.name in CANNOT_START_WITHOUT]
    found = _core(hard, missing, [j for j in core if j.verdict is Verdict.WRONG], comfyui, packages)
    found += _untracked([j for j in core if j.verdict is Verdict.UNTRACKED], packages)
    found += _page([j for j in front_end if j.verdict in (Verdict.MISSING, Verdict.WRONG)])
    if any(f.code.startswith("comfyui.requirement") for f in found):
        return found
    return [*found, ok("comfyui.requirements_met", "All that ComfyUI needs for jobs is installed.")]


def _core(
    hard: Sequence[Judged],
    missing: Sequence[Judged],
    wrong: Sequence[Judged],
    comfyui: ComfyUIFacts,
    packages: PackagesFacts,
) -> list[Finding]:
    found = []
    wanted = [j for j in missing if j not in hard]
    python = shown(packages.python)
    if hard:
        found.append(
            error(
                "comfyui.requirement_missing",
                f"ComfyUI cannot start: {python} lacks {_texts(hard)}.",
                _install(hard, comfyui, packages),
                **_details(hard),
            )
        )
    if wanted:
        found.append(
            warning(
                "comfyui.requirement_wanted",
                f"{python} lacks {_texts(wanted)}: ComfyUI starts, but nodes that need them are "
                "missing.",
                _install(wanted, comfyui, packages),
                **_details(wanted),
            )
        )
    if wrong:
        found.append(
            warning(
                "comfyui.requirement_version",
                f"This ComfyUI requires {_texts(wrong)} in {python}.",
                _install(wrong, comfyui, packages),
                **_details(wrong),
            )
        )
    return found


def _untracked(judged: Sequence[Judged], packages: PackagesFacts) -> list[Finding]:
    if not judged:
        return []
    names = named([j.name for j in judged])
    return [
        info(
            "python.package_untracked",
            f"{names} can be imported by {shown(packages.python)}, but pip has no record of it: a "
            "stand-in or a copy, whose version nobody knows.",
            f"If nodes fail that use it: `{_line(judged, packages)}`.",
            **_details(judged),
        )
    ]


def _page(judged: Sequence[Judged]) -> list[Finding]:
    if not judged:
        return []
    return [
        info(
            "comfyui.front_end_packages",
            f"{_texts(judged)}: not installed as required. They are ComfyUI's web page; the worker "
            "gives it a page of its own, and jobs need none.",
            **_details(judged),
        )
    ]


def _of_packs(comfyui: ComfyUIFacts, packages: PackagesFacts) -> list[Finding]:
    asking = [pack for pack in comfyui.active if pack.wishes.requirements]
    unmet: list[tuple[Pack, list[Judged]]] = []
    found: list[Finding] = []
    for pack in asking:
        judged = [judge(r, packages) for r in pack.wishes.requirements]
        bad = [j for j in judged if j.verdict in (Verdict.MISSING, Verdict.WRONG)]
        torch = [j for j in bad if j.name in TORCH and j.verdict is Verdict.WRONG]
        if torch and len(found) < MOST_PACKS:
            found.append(_torch_conflict(pack, torch, comfyui, packages))
        if rest := [j for j in bad if j not in torch]:
            unmet.append((pack, rest))
    found += [_unmet(pack, bad, comfyui, packages) for pack, bad in unmet[:MOST_PACKS]]
    if unmet[MOST_PACKS:]:
        found.append(_more(unmet[MOST_PACKS:], comfyui, packages))
    if asking and not found:
        met = f"All that {counted(len(asking), 'node pack')} with requirements ask for is there."
        return [ok("nodes.requirements_met", met)]
    return found


def _unmet(
    pack: Pack, bad: Sequence[Judged], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    then = ""
    if pack.install_script:
        script = typed(packages.python, "install.py")
        then = f"It also has an install script: `cd {typed(pack.path)} && {script}`."
    return warning(
        "nodes.requirements_unmet",
        f"The node pack {shown(pack.name)} requires {_texts(bad)}, not so in "
        f"{shown(packages.python)}.",
        _install(bad, comfyui, packages, then),
        pack=shown(pack.name),
        **_details(bad),
    )


def _torch_conflict(
    pack: Pack, torch: Sequence[Judged], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    file = pack.wishes_file or pack.path
    # What stays out of the file is asked for no more; the old file stays as .bak.
    script = "/^[[:space:]]*(torch|torchvision|torchaudio)([^A-Za-z0-9_.-]|$)/Id"
    flags = ["--break-system-packages"] if packages.managed else []
    kept = public_torch(packages)
    pins = [f"torch=={kept}"] if kept else []
    pip = typed(packages.python, "-m", "pip", "install", *flags, "-r", file, *pins)
    command = f"{typed('sed', '-i.bak', '-E', script, file)} && {pip}"
    if file.endswith("pyproject.toml"):
        command = typed("mv", pack.path, f"{pack.path}.disabled")
    return warning(
        "nodes.torch_conflict",
        f"The node pack {shown(pack.name)} asks for {_texts(torch)}: installing its requirements "
        "as they are would replace torch and can break all other nodes.",
        where_to_type(command, packages.python, comfyui.path, "That leaves torch as it is."),
        pack=shown(pack.name),
        **_details(torch),
    )


def _more(
    unmet: Sequence[tuple[Pack, list[Judged]]], comfyui: ComfyUIFacts, packages: PackagesFacts
) -> Finding:
    every = [j for _, bad in unmet for j in bad if j.verdict is Verdict.MISSING][:50]
    every = every or [j for _, bad in unmet for j in bad][:50]
    return warning(
        "nodes.requirements_more",
        f"{counted(len(unmet), 'more node pack lacks', 'more node packs lack')} requirements: "
        f"{named([pack.name for pack, _ in unmet], 20)}.",
        _install(every, comfyui, packages, "Then check again."),
        packs=[shown(pack.name) for pack, _ in unmet[:200]],
    )


def _install(
    judged: Sequence[Judged], comfyui: ComfyUIFacts, packages: PackagesFacts, then: str = ""
) -> str:
    return where_to_type(_line(judged, packages), packages.python, comfyui.path, then)


def _line(judged: Sequence[Judged], packages: PackagesFacts) -> str:
    return pip_install(packages, [(j.name, j.requirement.text) for j in judged])


def _texts(judged: Sequence[Judged]) -> str:
    return named([str(j) for j in judged], 8)


def _details(judged: Sequence[Judged]) -> dict[str, list[dict[str, str | None]]]:
    return {
        "requirements": [
            {"name": j.name, "wanted": j.requirement.text, "installed": j.version}
            for j in judged[:50]
        ]
    }
