"""Symbolic links at the top of the volume that lead nowhere, or lead there on one machine only."""

from __future__ import annotations

from collections.abc import Callable
from posixpath import join

from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import SERVERLESS, about, chained, named, on_pod, quoted, shown, words
from bootstrap.facts.volume_facts import VolumeFacts
from bootstrap.facts.volume_links import Leads, LinkFact
from bootstrap.volume import COMFYUI, MODELS

CODES = {
    "links.other_mount": "Links name the mount point of a Pod on Serverless, or the reverse.",
    "links.absolute": "Links name this mount point and lead nowhere where there is another.",
    "links.broken": "Links lead nowhere.",
    "links.ours_broken": "Links of our own lead nowhere: the models behind them are gone.",
    "links.endless": "Links lead to themselves or to a folder they lie in.",
    "links.outward": "Links lead off the volume, to what is on this machine only.",
}
_AWAY = (Leads.NOWHERE, Leads.LOOP)


def check_links(facts: VolumeFacts) -> list[Finding]:
    """One finding a kind; a link is of one kind only."""
    kinds: dict[str, list[LinkFact]] = {}
    for link in facts.links:
        kind = _kind(link, facts)
        if kind is not None:
            kinds.setdefault(kind, []).append(link)
    return [_REPORTS[kind](links, facts) for kind, links in kinds.items()]


def hides_comfyui(facts: VolumeFacts) -> bool:
    """Is ComfyUI on the volume, behind a link that names another mount point?"""
    expected = join(facts.root, COMFYUI)
    return facts.comfyui is None and any(
        link.path == expected and link.leads in _AWAY and link.relative for link in facts.links
    )


def _kind(link: LinkFact, facts: VolumeFacts) -> str | None:
    if link.ours:
        return "links.ours_broken"
    if link.leads in _AWAY and link.relative is not None:
        return "links.other_mount"
    if link.leads is Leads.NOWHERE:
        return "links.broken"
    if link.leads is Leads.LOOP or (link.leads is Leads.UP and _matters(link, facts)):
        return "links.endless"
    if link.leads is Leads.OUT:
        return "links.outward"
    return "links.absolute" if link.relative is not None else None


def _matters(link: LinkFact, facts: VolumeFacts) -> bool:
    """Is it ComfyUI, models, or in one of them? The rest of the volume is not ours to judge."""
    return any(contains(join(facts.root, top), link.path) for top in (COMFYUI, MODELS))


def _other_mount(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    report = error if hides_comfyui(facts) else warning
    return _relinked("links.other_mount", report, links, facts, "but the volume is mounted at")


def _absolute(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    """What works on Serverless is fit for jobs; what works on the Pod only is not."""
    report = info if facts.root == SERVERLESS else warning
    return _relinked(
        "links.absolute", report, links, facts, "which leads nowhere where it is not mounted at"
    )


def _relinked(
    code: str,
    report: Callable[..., Finding],
    links: list[LinkFact],
    facts: VolumeFacts,
    why: str,
) -> Finding:
    commands = [f"ln -sfn {quoted(str(link.relative))} {quoted(link.path)}" for link in links]
    command = chained(commands)
    texts = sorted({str(link.home) for link in links})
    return report(
        code,
        f"Links that begin with {named(texts)}, {why} {shown(facts.root)}: {_examples(links)}.",
        on_pod(command, facts.root, "Relative links work under every mount point."),
        **about([link.path for link in links], command),
    )


def _broken(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    report = warning if any(_matters(link, facts) for link in links) else info
    return _removed(
        "links.broken",
        report,
        links,
        facts,
        "lead nowhere; a broken link in models makes whole lists of models vanish",
        "If you miss what they led to, put it there first.",
    )


def _ours(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    return _removed(
        "links.ours_broken",
        warning,
        links,
        facts,
        "were made by this worker, and the models behind them are gone",
        "A worker that starts removes them, too.",
    )


def _endless(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    return _removed(
        "links.endless",
        warning,
        links,
        facts,
        "lead to themselves or to a folder they lie in, so ComfyUI's search does not end there",
        "",
    )


def _removed(
    code: str,
    report: Callable[..., Finding],
    links: list[LinkFact],
    facts: VolumeFacts,
    why: str,
    then: str,
) -> Finding:
    paths = [link.path for link in links]
    command = f"rm {words(paths)}"
    return report(
        code,
        f"{_counted(links)} {why}: {_examples(links)}.",
        on_pod(command, facts.root, then),
        **about(paths, command),
    )


def _outward(links: list[LinkFact], facts: VolumeFacts) -> Finding:
    report = warning if any(_matters(link, facts) for link in links) else info
    command = chained([_brought_in(link.path) for link in links])
    return report(
        "links.outward",
        f"{_counted(links)} lead off the volume, to what other machines do not have: "
        f"{_examples(links)}.",
        on_pod(command, facts.root, "That copies what they lead to onto the volume."),
        **about([link.path for link in links], command),
    )


def _brought_in(path: str) -> str:
    copy = quoted(f"{path}.copy")
    return f"cp -aL {quoted(path)} {copy} && rm {quoted(path)} && mv -T {copy} {quoted(path)}"


def _counted(links: list[LinkFact]) -> str:
    return "1 link:" if len(links) == 1 else f"{len(links)} links"


def _examples(links: list[LinkFact]) -> str:
    return named([f"{link.path} → {link.text}" for link in links])


_REPORTS: dict[str, Callable[[list[LinkFact], VolumeFacts], Finding]] = {
    "links.other_mount": _other_mount,
    "links.absolute": _absolute,
    "links.broken": _broken,
    "links.ours_broken": _ours,
    "links.endless": _endless,
    "links.outward": _outward,
}
