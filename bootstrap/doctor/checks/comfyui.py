"""ComfyUI's tree and the interpreter it will run with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import pluralize, printable, shell_quote, summarize_list
from bootstrap.doctor.facts.comfyui import ComfyUIFacts, WantedNodes
from bootstrap.environment import PackagesFacts
from bootstrap.environment.node_packs import Pack, PackState
from bootstrap.nodes.presence import PackOnDisk

CODES = {
    "comfyui.version": "The version of ComfyUI",
    "comfyui.version_unknown": "The version of ComfyUI cannot be determined",
    "comfyui.incomplete": "Files or folders of ComfyUI are missing",
    "comfyui.silent": "ComfyUI's folder did not respond in time",
    "python.unusable": "The interpreter for ComfyUI does not start",
    "python.other_version": "A venv's packages were installed for another version of Python",
    "python.on_network": "ComfyUI's packages are on a network volume",
    "python.scripts_moved": "The scripts in a venv name its interpreter's former path",
    "nodes.pack_empty": "A custom node pack's folder has nothing that can be imported",
    "nodes.pack_twice": "Two copies of one custom node pack are active",
    "nodes.absent": "Custom node packs in the manifest are not on the volume",
    "nodes.workflow_lacks": "A workflow on the volume uses nodes of packs that are not installed",
}


def check_comfyui(comfyui: ComfyUIFacts, packages: PackagesFacts | None) -> list[Finding]:
    """Version and completeness, the interpreter, the folders of custom nodes."""
    if comfyui.silent_after is not None:
        return [_silent(comfyui)]
    found = [_version(comfyui)]
    if comfyui.missing:
        found.append(_incomplete(comfyui))
    if packages is not None:
        found += _interpreter(packages)
    return [*found, *_empty_packs(comfyui), *_twins(comfyui)]


def _silent(comfyui: ComfyUIFacts) -> Finding:
    return warning(
        "comfyui.silent",
        f"{printable(comfyui.path)} did not answer within {comfyui.silent_after:g} s.",
        "Look at the volume's findings first; a network volume that hangs needs another worker.",
    )


def _version(comfyui: ComfyUIFacts) -> Finding:
    packs = pluralize(len(comfyui.active), "custom node pack")
    if comfyui.version is None:
        return info(
            "comfyui.version_unknown",
            f"The ComfyUI in {printable(comfyui.path)} does not say which version it is; it has "
            f"{packs}. Versions before 2025 do not.",
        )
    return ok("comfyui.version", f"ComfyUI {comfyui.version} with {packs}.")


def _incomplete(comfyui: ComfyUIFacts) -> Finding:
    restore = shell_quote("git", "-C", comfyui.path, "checkout", "--", *comfyui.missing)
    fix = f"On a Pod: `{restore}`."
    if comfyui.git is None:
        fix = (
            "It is not a git checkout: clone ComfyUI again beside it and copy "
            f"{summarize_list(comfyui.missing)} from there."
        )
    return error(
        "comfyui.incomplete",
        f"{printable(comfyui.path)}/ lacks {summarize_list(comfyui.missing)}: ComfyUI cannot "
        "start.",
        fix,
        missing=list(comfyui.missing),
    )


def _interpreter(packages: PackagesFacts) -> Iterator[Finding]:
    python = printable(packages.python)
    if packages.failure is not None:
        yield error(
            "python.unusable",
            f"{python}, which ComfyUI is to run with, does not start: {packages.failure.reason}.",
            "Set COMFYUI_PYTHON to an interpreter of this image, or create the venv again on a Pod "
            "that runs the same image.",
        )
    elif packages.sees_nothing:
        yield error(
            "python.other_version",
            f"{python} is Python {packages.version}, but its packages were installed for Python "
            f"{summarize_list(packages.other_versions)}: it sees none of them.",
            "Create the venv again on a Pod that runs the worker's image, or use an image with "
            f"Python {summarize_list(packages.other_versions)}.",
        )
    elif packages.network is not None:
        yield info(
            "python.on_network",
            f"ComfyUI's packages lie on a network volume ({packages.network}). A worker copies "
            "what their start opens to local disk, from a record that the first start leaves.",
            "Nothing to do. Packages in the image (/opt/comfyui) start faster still.",
        )
    if packages.scripts_python is not None:
        yield info(
            "python.scripts_moved",
            f"Scripts beside {python} name {printable(packages.scripts_python)}, where the venv "
            "was made; the interpreter itself works.",
            f"Write `{shell_quote(packages.python, '-m', 'pip')} …` instead of `pip …`.",
        )


def _empty_packs(comfyui: ComfyUIFacts) -> Iterator[Finding]:
    for pack in comfyui.active:
        if pack.state is not PackState.GOOD:
            yield _empty(pack)


def _empty(pack: Pack) -> Finding:
    path = printable(pack.path)
    reasons = {
        PackState.EMPTY: f"{path} is empty: a clone or a submodule that was never filled.",
        PackState.NO_INIT: f"{path} has no __init__.py, so ComfyUI cannot import it.",
        PackState.LINK_BROKEN: f"{path} is a broken link.",
        PackState.UNREADABLE: f"{path} cannot be read.",
    }
    fixes = {
        PackState.EMPTY: f"`{shell_quote('rmdir', pack.path)}`, then clone the custom node again.",
        PackState.NO_INIT: f"If it is none, take it out of ComfyUI's sight: `{_disable(pack)}`.",
        PackState.LINK_BROKEN: (
            f"`{shell_quote('rm', pack.path)}` removes the link; clone the node instead."
        ),
        PackState.UNREADABLE: f"`{shell_quote('chmod', '-R', 'u+rwX', pack.path)}` on a Pod.",
    }
    fix = fixes.get(pack.state, f"`{_disable(pack)}`")
    if pack.only_git:
        fix = (
            f"`{shell_quote('git', '-C', pack.path, 'checkout', '-f', 'HEAD')}` restores its files."
        )
    elif pack.inner:
        fix = (
            f"Move {printable(pack.inner)} one level up: it was unpacked one folder too deep: "
            f"`{shell_quote('mv', f'{pack.path}/{pack.inner}', f'{pack.path}-inner')} && "
            f"{_disable(pack)} && {shell_quote('mv', f'{pack.path}-inner', pack.path)}`."
        )
    elif pack.origin:
        clone = shell_quote("git", "clone", pack.origin, pack.path)
        fix = f"`{_disable(pack)} && {clone}`."
    return warning("nodes.pack_empty", reasons.get(pack.state, path), fix, pack=pack.path)


def _disable(pack: Pack) -> str:
    """ComfyUI skips folders with this suffix; nothing is deleted."""
    return shell_quote("mv", pack.path, f"{pack.path}.disabled")


def _twins(comfyui: ComfyUIFacts) -> Iterator[Finding]:
    """Same name except case, `-main` or `-master`: both are imported, and the later one wins."""
    same: dict[str, list[Pack]] = defaultdict(list)
    for pack in comfyui.active:
        plain = pack.name.lower().removesuffix("-main").removesuffix("-master")
        same[plain].append(pack)
    for packs in same.values():
        if len(packs) > 1:
            last = packs[-1]
            yield warning(
                "nodes.pack_twice",
                f"{summarize_list([p.path for p in packs])} are copies of one custom node: both "
                "are imported, and which one's nodes you get is chance.",
                f"Keep one: `{_disable(last)}`.",
                packs=[p.path for p in packs],
            )


def check_wanted_nodes(wanted: WantedNodes) -> list[Finding]:
    """Missing packs of the node manifest, and packs that the volume's workflows need."""
    found = list(wanted.findings)
    if wanted.absent:
        found.append(_absent(wanted.absent))
    found += [_lacks(file, away, wanted.date) for file, away in wanted.lacking.items()]
    return found


def _absent(absent: Sequence[PackOnDisk]) -> Finding:
    names = [f"{each.path.name} ({each.what or 'missing'})" for each in absent]
    return warning(
        "nodes.absent",
        f"{pluralize(len(absent), 'custom node pack')} of the manifest not there as wanted: "
        f"{summarize_list(names)}.",
        "The next worker that starts fetches what is missing; on a Pod: "
        "`comfyui-worker nodes pull`.",
        packs=[str(each.path) for each in absent[:50]],
    )


def _lacks(file: str, away: Mapping[str, str], date: str) -> Finding:
    nodes = summarize_list([f"{name} ({pack})" for name, pack in away.items()])
    return warning(
        "nodes.workflow_lacks",
        f"{printable(file)} uses nodes of packs that are not on the volume: {nodes} (by the map of "
        f"{date}).",
        f"On a Pod: `{shell_quote('comfyui-worker', 'nodes', 'add', '--from', file)}`, then "
        "`comfyui-worker nodes pull`.",
        workflow=file,
        packs=sorted(set(away.values())),
    )
