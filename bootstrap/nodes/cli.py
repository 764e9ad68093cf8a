"""`comfyui-worker nodes add|list|plan|pull|verify|map`: the same on a Pod as on a worker."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from bootstrap.core.findings import Finding
from bootstrap.core.terminal import report, stop_on_signals
from bootstrap.core.text import pluralize, size_text, summarize_list
from bootstrap.environment.node_packs import COMMIT
from bootstrap.models.download.progress import meters_for
from bootstrap.models.manifest_command import (
    FAILED,
    OK,
    USAGE,
    ManifestCommand,
    Step,
    manifest_parser,
    run,
)
from bootstrap.models.manifest_file import read_data
from bootstrap.net import DownloadError, disk_error
from bootstrap.nodes.manifest import (
    NODES,
    GitPin,
    PackSpec,
    RegistryPin,
    add_packs,
    check_id,
    load_nodes,
    read_entry,
    repository_name,
    repository_url,
)
from bootstrap.nodes.node_map import NodeMap, UsedNode, keep_map, kept_map, nodes_in
from bootstrap.nodes.presence import (
    Presence,
    has_pack,
    look_at_pack,
    occupied,
    repositories_in,
    verify,
)
from bootstrap.nodes.pull import PackMeter, pull, pull_context
from bootstrap.nodes.sources import MAP_URL, PackSources

_VARIABLES = {
    "VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)",
    "NODES_MANIFEST": "the manifest or snapshot (default: nodes.json on the volume)",
    "DOWNLOAD_TOKEN": "for repositories at the host in DOWNLOAD_TOKEN_HOST",
}
_PROG = "python -m bootstrap nodes"
# A repository's page in the browser, as people copy it.
_PAGE = re.compile(
    r"(?P<url>https?://[^/]+/[^/]+/[^/]+)/(?:-/)?(?:tree|commit|commits)/(?P<ref>[^?#]+)"
)


# What each command does, and two examples.
_COMMANDS = {
    "add": (
        "pin a pack, or those that a workflow needs, and write it into the manifest",
        "add comfyui-impact-pack",
        "add --from workflow.json",
    ),
    "list": ("show the listed packs, and which are there", "list", "list --json"),
    "plan": (
        "show what pull would fetch, and from where",
        "plan",
        "plan --manifest snapshot.json",
    ),
    "pull": (
        "fetch what is missing; runs no code of any pack",
        "pull",
        "pull --manifest snapshot.json",
    ),
    "verify": (
        "read what is there and compare it with what was fetched",
        "verify",
        "verify --json",
    ),
    "map": (
        "show which pack has a node, by the map on the volume",
        "map --refresh",
        "map ImpactWildcardProcessor",
    ),
}


def main(
    argv: Sequence[str],
    out: TextIO | None = None,
    sources: PackSources | None = None,
    prog: str = _PROG,
) -> int:
    """Run one command; its exit code. `sources` in place of the real ones are for tests, which have
    their own servers."""
    return run(argv, _parser(prog), out, lambda *given: _Command(sources, *given))


def _parser(prog: str) -> argparse.ArgumentParser:
    what = "Custom node packs by manifest: add, list, fetch, verify."
    parser, commands = manifest_parser(prog, what, _COMMANDS, _VARIABLES, _COMMANDS["add"][1:])
    add, maps = commands["add"], commands["map"]
    add.add_argument(
        "pack", nargs="?", help="ID, ID@VERSION (Comfy Registry), or a git address, with @REF"
    )
    add.add_argument("--ref", help="branch, tag or commit of a git address")
    add.add_argument("--directory", help="folder in custom_nodes, if not the usual one")
    add.add_argument(
        "--from", dest="workflow", metavar="WORKFLOW", help="all packs that a workflow needs"
    )
    commands["pull"].add_argument(
        "--force", action="store_true", help="move what is in the way to custom_nodes/.disabled"
    )
    maps.add_argument("node", nargs="*", help="node classes to look up")
    maps.add_argument("--refresh", action="store_true", help="fetch the map")
    maps.add_argument("--url", default=MAP_URL, help="where it is, if not at ComfyUI-Manager's")
    return parser


class _Command(ManifestCommand[PackSpec]):
    kind = NODES
    example = "add comfyui-impact-pack"
    alone = ("add", "map")

    def __init__(self, sources: PackSources | None, *given: Any) -> None:
        super().__init__(*given)
        context = pull_context(self.settings, self.layout, meters_for(sys.stderr, PackMeter))
        self.context = replace(context, sources=sources or context.sources)

    def load(self) -> tuple[Sequence[PackSpec], Sequence[Finding]] | None:
        http = self.settings.allow_private_download_urls
        manifest = load_nodes(self.setting, self.root, http)
        return None if manifest is None else (manifest.packs, manifest.findings)

    def add(self) -> int:
        """Pin the requested packs and write their entries."""
        if (self.arguments.pack is None) == (self.arguments.workflow is None):
            self.say("Give one of: a pack, or --from WORKFLOW.")
            return USAGE
        return super().add()

    def add_to(self, path: Path) -> tuple[list[PackSpec], list[PackSpec], bool]:
        specs, complete = self._wanted()
        return specs, add_packs(path, specs), complete

    def _wanted(self) -> tuple[list[PackSpec], bool]:
        """The packs to add, and whether every node has one."""
        if self.arguments.workflow is not None:
            return self._for_workflow(Path(self.arguments.workflow))
        pin = self._pin(self.arguments.pack, self.arguments.ref)
        return [_spec(pin, self.arguments.directory)], True

    def _pin(self, pack: str, ref: str | None) -> RegistryPin | GitPin:
        sources, http = self.context.sources, self.settings.allow_private_download_urls
        if page := _PAGE.fullmatch(pack):
            pack, ref = page["url"], ref or page["ref"]
        if "://" not in pack and not pack.startswith("git@"):
            name, _, version = pack.partition("@")
            check_id(name)
            version = version or ref or ""
            return sources.version(name, version) if version else sources.newest(name)
        address, at, behind = pack.rpartition("@")
        if at and "/" not in behind:
            pack, ref = address, ref or behind
        return sources.pin(repository_url(pack, http), ref)

    def _for_workflow(self, path: Path) -> tuple[list[PackSpec], bool]:
        """What a workflow needs and custom_nodes lacks."""
        known = kept_map(self.root)
        if known is None:
            self.say("There is no map of nodes yet: it is fetched now.")
            known = self._refresh(MAP_URL)
        specs: dict[str, PackSpec] = {}
        unknown = []
        for needed in nodes_in(read_data(path, NODES)):
            try:
                specs.update((spec.name, spec) for spec in map(_spec, self._pins(needed, known)))
            except DownloadError as problem:
                report([problem.finding(needed.name)], self.out)
                unknown.append(needed.name)
            except LookupError:
                unknown.append(needed.name)
        if unknown:
            date = known.fetched
            self.say(
                f"No pack is known (map of {date}) that has: {summarize_list(sorted(unknown), 20)}."
            )
        if not specs and not unknown:
            self.say("The workflow needs no pack that is not there.")
        return list(specs.values()), not unknown

    def _pins(self, needed: UsedNode, known: NodeMap) -> list[RegistryPin | GitPin]:
        """The pack to add for a node, if any: by what the editor wrote beside it, else by the map.
        Raises LookupError if none is known, and DownloadError."""
        if needed.registry_id == "comfy-core":
            return []
        commit = needed.version if COMMIT.fullmatch(needed.version) else None
        if needed.registry_id and commit is None:
            return self._in_registry(needed)
        origin = known.origin_of(needed.name)
        if origin.core:
            return []
        url = f"https://github.com/{needed.github}" if needed.github.count("/") == 1 else ""
        if not url and not origin.packs and needed.registry_id:
            return [self.context.sources.newest(needed.registry_id)]
        return self._in_git(needed, url, origin.packs, commit)

    def _in_registry(self, needed: UsedNode) -> list[RegistryPin | GitPin]:
        if (self.context.nodes / needed.registry_id).exists():
            return []
        if re.fullmatch(r"\d+\.\d+\.\d+", needed.version):
            return [RegistryPin(needed.registry_id, needed.version)]
        return [self.context.sources.newest(needed.registry_id)]

    def _in_git(
        self, needed: UsedNode, url: str, packs: Sequence[str], commit: str | None
    ) -> list[RegistryPin | GitPin]:
        if not url and not packs:
            raise LookupError(needed.name)
        if not url and len(packs) > 1:
            others = summarize_list(packs[1:], 3)
            self.say(f"{needed.name}: {packs[0]} is taken; others have it, too: {others}.")
        url = repository_url(url or packs[0], self.settings.allow_private_download_urls)
        if url.endswith(".py"):
            self.say(f"{needed.name} is in a single file: copy {url} into custom_nodes.")
            raise LookupError(needed.name)
        there = has_pack(url, self.context.nodes, self._repositories)
        return [] if there else [self.context.sources.pin(url, commit)]

    @cached_property
    def _repositories(self) -> frozenset[str]:
        """Of all packs in custom_nodes, read once for all nodes of a workflow."""
        return repositories_in(self.context.nodes)

    def plan(self, specs: Sequence[PackSpec]) -> int:
        """What would be fetched; asks the servers whether they have it."""
        steps = [self.look(spec, ask=True) for spec in specs]
        self.show(steps)
        return FAILED if any(step.problem for step in steps) else OK

    def pull(self, specs: Sequence[PackSpec]) -> int:
        """Fetch what is missing."""
        results = pull(specs, self.context, stop_on_signals(), self.arguments.force)
        if self.arguments.json:
            self.say(json.dumps([result.as_dict() for result in results], indent=2))
        else:
            report([finding for result in results for finding in result.findings()], self.out)
            for result in results:
                if result.aside is not None:
                    self.say(f"{result.path} was there; it is now {result.aside}.")
            there = sum(result.good for result in results)
            self.say(f"{there} of {pluralize(len(results), 'pack')} there.")
        return OK if all(result.good for result in results) else FAILED

    def look(self, spec: PackSpec, ask: bool) -> Step:
        about, context = _about(spec), self.context
        try:
            found = look_at_pack(spec, context.nodes)
            if found.state is Presence.THERE:
                return Step(about, f"{found.what} at {found.path}", there=True)
            if found.state is Presence.OCCUPIED:
                raise occupied(spec, found)
            host, size = context.sources.host_of(spec), context.sources.check(spec) if ask else None
        except OSError as problem:
            failed = disk_error(problem, context.nodes, None)
            return Step(about, failed.message, problem=failed)
        except DownloadError as problem:
            return Step(about, f"{problem.message} {problem.fix}", problem=problem)
        amount = "" if size is None else f"{size_text(size)} "
        instead = f", in place of {found.what}" if found.state is Presence.OTHER else ""
        what = f"{amount}from {host}: {spec.pin}{instead}"
        return Step(about, what, to_fetch={"host": host, "size": size})

    def verified(self, spec: PackSpec) -> Step:
        try:
            good, what, problem = verify(spec, self.context.nodes)
        except OSError as failed:
            problem = disk_error(failed, self.context.nodes, None)
            good, what = False, problem.message
        return Step(_about(spec), what, there=good, problem=problem)

    def map(self) -> int:
        """Which pack has which node."""
        try:
            known = (
                self._refresh(self.arguments.url) if self.arguments.refresh else kept_map(self.root)
            )
        except OSError as problem:
            report([disk_error(problem, self.root, None).finding("The map")], self.out)
            return FAILED
        if known is None:
            self.say(f"No map of nodes is kept yet. Fetch it: {self.prog} map --refresh")
            return FAILED
        if not self.arguments.node:
            nodes, packs = pluralize(len(known.nodes), "node"), pluralize(len(known.packs), "pack")
            self.say(f"Map of {known.fetched}: {nodes} of {packs}, from {known.source}")
            return OK
        found = {name: known.origin_of(name) for name in self.arguments.node}
        for name, origin in found.items():
            where = "ComfyUI itself" if origin.core else ", ".join(origin.packs) or "unknown"
            self.say(f"{name}: {where}")
        return OK if all(o.core or o.packs for o in found.values()) else FAILED

    def _refresh(self, url: str) -> NodeMap:
        known = self.context.sources.fetch_map(url)
        keep_map(known, self.root)
        return known


def _about(spec: PackSpec) -> dict[str, str]:
    return {"pack": spec.name, "source": str(spec.pin)}


def _spec(pin: RegistryPin | GitPin, directory: str | None = None) -> PackSpec:
    """The spec, read like an entry of the manifest. Raises DownloadError."""
    usual = pin.id if isinstance(pin, RegistryPin) else repository_name(pin.url)
    entry = PackSpec(directory or usual, pin).as_entry()
    return read_entry(entry, "", allow_http=True)
