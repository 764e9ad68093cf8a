"""Links, venvs and model paths on the volume that are broken or lead elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from posixpath import basename, join, relpath

from bootstrap.config import Settings
from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, Severity, error, info, warning
from bootstrap.core.text import (
    POD,
    SERVERLESS,
    about,
    chained,
    on_pod,
    pluralize,
    printable,
    shell_quote,
    summarize_list,
    without_tabs,
    words,
)
from bootstrap.doctor.facts.inventory import Inventory
from bootstrap.doctor.facts.volume_facts import LinkFact, LinkTarget, VolumeFacts
from bootstrap.doctor.facts.volume_places import BASE, ModelPath
from bootstrap.environment import Venv
from bootstrap.volume import COMFYUI, MODELS
from bootstrap.volume.args_file import OLD_FILE
from bootstrap.volume.find_comfyui import MountState

CODES = {
    "links.other_mount": "Links name the volume's other mount point and are broken here",
    "links.held_by_mount": "Links name the volume's other mount point, which a worker makes a link",
    "links.absolute": "Links name this mount point and break under any other",
    "links.broken": "Broken links",
    "links.ours_broken": "Links made by a worker are broken: their models are gone",
    "links.endless": "Links lead to themselves or to a folder above them",
    "links.outward": "Links lead off the volume, to what other machines do not have",
    "models.link_broken": "A broken link",
    "models.link_other_mount": "A link leads to where the volume is mounted on another machine",
    "models.link_loop": "A link leads to itself or to a folder above it",
    "models.link_escapes": "A link leads out of the volume",
    "volume.venv_broken": "A virtual environment's Python is not on this machine",
    "volume.venv_moved": "A virtual environment was created under another path",
    "volume.paths_other_mount": "`extra_model_paths.yaml` names the other mount point",
    "volume.paths_absolute": "`extra_model_paths.yaml` names a mount point that others lack",
    "volume.paths_tabs": "`extra_model_paths.yaml` is indented with tabs, which YAML forbids",
    "volume.paths_missing": "`extra_model_paths.yaml` names folders that do not exist",
}
_MOST_COPIES = 5  # in one command, which names each path five times
_AWAY = (LinkTarget.BROKEN, LinkTarget.LOOP)


def check_links(
    facts: VolumeFacts, settings: Settings, inventory: Inventory | None = None
) -> list[Finding]:
    """One finding per kind; a link is of one kind only. The inventory adds those among the models
    that `facts` lacks."""
    names = names_that_hold(facts, settings)
    among_models = inventory.further_links(facts) if inventory else ()
    found = [(_kind(link, facts, names), link) for link in facts.links]
    found += [(_kind_among_models(link, names), link) for link in among_models]
    kinds: dict[str, list[LinkFact]] = {}
    for kind, link in found:
        if kind is not None:
            kinds.setdefault(kind, []).append(link)
    return [_KINDS[kind].finding(kind, links, facts) for kind, links in kinds.items()]


def names_that_hold(facts: VolumeFacts, settings: Settings) -> frozenset[str]:
    """The volume's other mount points on a worker, besides the one here. On a Pod, where it is
    /workspace, that is the name that a worker creates.
    """
    if not settings.link_other_mount:
        return frozenset(str(m.path) for m in facts.other_mounts if m.state is MountState.VOLUME)
    here = {POD} if facts.root == POD else set()
    others = {str(m.path) for m in facts.other_mounts if m.state is not MountState.TAKEN}
    return frozenset(here | others)


def _kind(link: LinkFact, facts: VolumeFacts, names: frozenset[str]) -> str | None:
    # If both names of the volume lead to it, links may use either.
    holds = link.home in names
    if link.ours:
        return "links.ours_broken"
    if link.leads in _AWAY and link.relative is not None:
        return "links.held_by_mount" if holds else "links.other_mount"
    if link.leads is LinkTarget.BROKEN:
        return "links.broken"
    if link.leads is LinkTarget.LOOP or (link.leads is LinkTarget.UP and _matters(link, facts)):
        return "links.endless"
    if link.leads is LinkTarget.OUTSIDE:
        return "links.outward"
    return "links.absolute" if link.relative is not None and not holds else None


def _kind_among_models(link: LinkFact, names: frozenset[str]) -> str:
    if link.ours:
        return "links.ours_broken"
    if link.leads is LinkTarget.OUTSIDE:
        return "models.link_escapes"
    if link.leads is LinkTarget.LOOP:
        return "models.link_loop"
    if link.relative is None:
        return "models.link_broken"
    return "links.held_by_mount" if link.home in names else "models.link_other_mount"


def _matters(link: LinkFact, facts: VolumeFacts) -> bool:
    """Is it ComfyUI, models, or in one of them? The rest of the volume is not checked."""
    if facts.home == facts.root:
        return True
    tops = (facts.home, join(facts.root, COMFYUI), join(facts.root, MODELS))
    return any(contains(top, link.path) for top in tops)


_Links = Sequence[LinkFact]


@dataclass(frozen=True)
class _Kind:
    """How links of one kind are reported. In `message`, {links} is their number, {names} are the
    mount points they begin with, {root} is the volume's here; `command` repairs them, and `then` is
    a remark on that."""

    message: str
    then: str = ""
    command: Callable[[_Links], str] = lambda _: ""
    severity: Callable[[_Links, VolumeFacts], Severity] = lambda *_: Severity.WARNING
    noun: str = "link"

    def finding(self, code: str, links: _Links, facts: VolumeFacts) -> Finding:
        """The finding about `links`, all of this kind."""
        names = summarize_list(sorted({str(link.home) for link in links}))
        count = pluralize(len(links), self.noun)
        said = self.message.format(links=count, names=names, root=printable(facts.root))
        examples = summarize_list([f"{link.path} → {link.text}" for link in links])
        command = self.command(links)
        return Finding(
            code,
            self.severity(links, facts),
            f"{said}: {examples}.",
            on_pod(command, facts.root, self.then) if command else self.then,
            details=about([link.path for link in links], command),
        )


def _relink(links: _Links) -> str:
    return chained(
        [f"ln -sfn {shell_quote(str(link.relative))} {shell_quote(link.path)}" for link in links]
    )


def _remove(links: _Links) -> str:
    return f"rm {words([link.path for link in links])}"


def _bring_in(links: _Links) -> str:
    return chained([_brought_in(link.path) for link in links[:_MOST_COPIES]])


def _brought_in(path: str) -> str:
    copy, path = shell_quote(f"{path}.copy"), shell_quote(path)
    return f"cp -aL {path} {copy} && rm {path} && mv -T {copy} {path}"


def _if_it_matters(links: _Links, facts: VolumeFacts) -> Severity:
    matters = any(_matters(link, facts) for link in links)
    return Severity.WARNING if matters else Severity.INFO


def _if_on_pod(_: object, facts: VolumeFacts) -> Severity:
    """A link that works on Serverless is fit for jobs; one that works only on the Pod is not."""
    return Severity.INFO if facts.root == SERVERLESS else Severity.WARNING


_RELATIVE = "Relative links work under every mount point."
_OTHER_MOUNT = _Kind(
    "Links that begin with {names}, but the volume is mounted at {root}", _RELATIVE, _relink
)
_ENDLESS = _Kind(
    "Links to themselves or to a folder above, where ComfyUI's search never ends", "", _remove
)
_OUTWARD = _Kind(
    "{links} off the volume, to files that other machines do not have",
    "That copies what they lead to onto the volume.",
    _bring_in,
)
_KINDS: Mapping[str, _Kind] = {
    "links.other_mount": _OTHER_MOUNT,
    "links.held_by_mount": _Kind(
        "Links that begin with {names} are broken here; a worker makes that name a link to the "
        "volume, and then they work",
        "Nothing to do, unless LINK_OTHER_MOUNT=false.",
        severity=lambda *_: Severity.INFO,
    ),
    "links.absolute": _Kind(
        "Links that begin with {names}, which is broken where it is not mounted at {root}",
        _RELATIVE,
        _relink,
        _if_on_pod,
    ),
    "links.broken": _Kind(
        "{links}",
        "One in models makes whole lists of models vanish. If you need its target, put that "
        "there first.",
        _remove,
        _if_it_matters,
        "broken link",
    ),
    "links.ours_broken": _Kind(
        "{links} made by a worker, whose targets are gone",
        "A starting worker removes them too.",
        _remove,
    ),
    "links.endless": _ENDLESS,
    "links.outward": replace(_OUTWARD, severity=_if_it_matters),
    "models.link_broken": _Kind(
        "{links}, which ComfyUI lists and jobs cannot load",
        "Or put the model there.",
        _remove,
        noun="broken link",
    ),
    "models.link_other_mount": _OTHER_MOUNT,
    "models.link_loop": _ENDLESS,
    "models.link_escapes": _OUTWARD,
}


def check_paths(facts: VolumeFacts, settings: Settings) -> list[Finding]:
    """Findings about venvs and about ComfyUI's own file of model paths."""
    names = names_that_hold(facts, settings)
    found = [f for venv in facts.venvs for f in _venv(venv, facts, names)]
    if facts.paths_tabs:
        return [*found, _tabs(facts)]  # nothing else in such a file is read
    return [*found, *_absolute_paths(facts, names), *_missing(facts)]


def _venv(venv: Venv, facts: VolumeFacts, names: frozenset[str]) -> list[Finding]:
    if not venv.python_exists:
        return [] if venv.interpreter or venv.is_backup else [_venv_broken(venv, facts)]
    if venv.made_at is None or venv.made_at == venv.path:
        return []
    if any(contains(name, venv.made_at) for name in names):
        return []
    program = shell_quote(join(venv.path, "bin", "python"))
    return [
        info(
            "volume.venv_moved",
            f"The virtual environment {printable(venv.path)} was made at "
            f"{printable(venv.made_at)}: its "
            "Python works here, its pip and other scripts only there.",
            f"Where you need pip: `{program} -m pip`.",
            **about([venv.path]),
        )
    ]


def _venv_broken(venv: Venv, facts: VolumeFacts) -> Finding:
    python = f"Python {venv.version}" if venv.version else "Python"
    path, old = shell_quote(venv.path), shell_quote(f"{venv.path}.old")
    program = shell_quote(join(venv.path, "bin", "python"))
    wanted = shell_quote(join(facts.comfyui or facts.home, "requirements.txt"))
    command = (
        f"mv -T {path} {old} && python3 -m venv {path} && {program} -m pip install -r {wanted}"
    )
    keep = "To keep this one, build the image with the Python that made it"
    keep += f" (--build-arg PYTHON_VERSION={venv.version})." if venv.version else "."
    return warning(
        "volume.venv_broken",
        f"The virtual environment {printable(venv.path)} was made by a {python} that is not on "
        "this machine, so ComfyUI cannot run with the packages in it.",
        on_pod(
            command,
            facts.root,
            f"That makes a new one; its Python must be of the version that the worker has. {keep}",
        ),
        **about([venv.path], command),
    )


def _tabs(facts: VolumeFacts) -> Finding:
    file = _file(facts)
    lines = ", ".join(map(str, facts.paths_tabs[:5]))
    which = f"line {lines} is" if len(facts.paths_tabs) == 1 else f"lines {lines} are"
    command = without_tabs(file)
    return error(
        "volume.paths_tabs",
        f"{printable(file)} is not valid YAML: {which} indented with a tab. ComfyUI exits when it "
        "reads that at its start.",
        on_pod(command, facts.root, "It puts two spaces for each tab."),
        **about([file], command),
    )


def _absolute_paths(facts: VolumeFacts, names: frozenset[str]) -> list[Finding]:
    """Paths below a mount point that does not exist here, or not everywhere; none if that name
    leads to the volume on a worker."""
    absolute = [p for p in facts.model_paths if p.home and p.there and p.home not in names]
    found = []
    if broken := [p for p in absolute if not p.exists]:
        why = f"but the volume is mounted at {printable(facts.root)}: models in it are not found"
        found.append(
            _made_relative("volume.paths_other_mount", Severity.WARNING, broken, why, facts)
        )
    fine = [p for p in absolute if p.exists] if facts.comfyui_on_volume else []
    if fine:
        why = "which does not exist if the volume has another mount point"
        severity = _if_on_pod(fine, facts)
        found.append(_made_relative("volume.paths_absolute", severity, fine, why, facts))
    return found


def _made_relative(
    code: str, severity: Severity, paths: Sequence[ModelPath], why: str, facts: VolumeFacts
) -> Finding:
    file, command = _file(facts), _respelt(paths, facts)
    return Finding(
        code,
        severity,
        f"{printable(file)} names {summarize_list([p.text for p in paths])}, {why}.",
        on_pod(command, facts.root, "Relative paths work under every mount point."),
        details=about([p.path for p in paths], command),
    )


def _respelt(paths: Sequence[ModelPath], facts: VolumeFacts) -> str:
    """A sed command that makes the paths relative to the file, as ComfyUI reads them."""
    root = facts.root
    if facts.comfyui_on_volume:
        root = relpath(facts.real, facts.comfyui_real)
    scripts = [f"{p.number}s#{_pattern(str(p.home))}#{_replacement(root)}#" for p in paths]
    edits = " ".join(f"-e {shell_quote(script)}" for script in scripts)
    return f"sed -i.bak {edits} {shell_quote(_file(facts))}"


def _missing(facts: VolumeFacts) -> Iterator[Finding]:
    """Without its base_path a whole section is unread; a missing category alone is harmless."""
    moved = {p.section for p in facts.model_paths if p.key == BASE and p.there and not p.exists}
    gone = [
        p
        for p in facts.model_paths
        if not p.exists and not p.there and not (p.below_base and p.section in moved)
    ]
    if not gone:
        return
    file = _file(facts)
    grave = any(p.key == BASE or not p.below_base for p in gone)
    command = (
        f"sed -i.bak {shell_quote(';'.join(f'{p.number}d' for p in gone))} {shell_quote(file)}"
    )
    report = warning if grave else info
    yield report(
        "volume.paths_missing",
        f"{printable(file)} names folders that do not exist: "
        f"{summarize_list([p.path for p in gone])}.",
        on_pod(command, facts.root, "It takes their lines out; the old file stays as .bak."),
        **about([p.path for p in gone], command),
    )


def _file(facts: VolumeFacts) -> str:
    return join(str(facts.comfyui), basename(facts.paths_file) or OLD_FILE)


def _pattern(text: str) -> str:
    return re.sub(r"([][.*^$\\#])", r"\\\1", text)


def _replacement(text: str) -> str:
    return re.sub(r"([&\\#])", r"\\\1", text)
