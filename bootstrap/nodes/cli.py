"""`comfyui-worker nodes add|list|plan|pull|verify|map`: the same on a Pod as on a worker."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from bootstrap.config import Settings, read_settings
from bootstrap.core.log import set_up, show
from bootstrap.core.redact import masked
from bootstrap.core.terminal import Parser, closing, report, step_line, stop_on_signals
from bootstrap.core.text import counted, named, size_text
from bootstrap.environment.packs import COMMIT
from bootstrap.models.download.progress import meters_for
from bootstrap.models.manifest_file import Unreadable, find_manifest, read_data
from bootstrap.net import DownloadError, disk_error
from bootstrap.nodes.installed import (
    State,
    has_pack,
    look,
    occupied,
    repositories_in,
    verify,
)
from bootstrap.nodes.manifest import (
    NODES,
    GitPin,
    NodeManifest,
    PackSpec,
    RegistryPin,
    add_packs,
    check_id,
    load_nodes,
    read_entry,
    repository_name,
    repository_url,
)
from bootstrap.nodes.node_map import Needed, NodeMap, keep_map, kept_map, nodes_in
from bootstrap.nodes.pull import PackMeter, PackPlace, place_for, pull
from bootstrap.nodes.sources import MAP_URL, PackSources
from bootstrap.volume import locate

_OK, _FAILED, _USAGE = 0, 1, 2
_PROG = "python -m bootstrap nodes"
# A page of a repository in the browser, as people copy it.
_PAGE = re.compile(
    r"(?P<url>https?://[^/]+/[^/]+/[^/]+)/(?:-/)?(?:tree|commit|commits)/(?P<ref>[^?#]+)"
)


# What each does, and two examples.
_COMMANDS = {
    "add": (
        "pin a pack, or those that a workflow needs, and write it into the manifest",
        "add comfyui-impact-pack",
        "add --from workflow.json",
    ),
    "list": ("what the manifest lists, and what of it is there", "list", "list --json"),
    "plan": (
        "what pull would fetch, and from where",
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
        "which pack has a node, by the map that is kept on the volume",
        "map --refresh",
        "map ImpactWildcardProcessor",
    ),
}


@dataclass(frozen=True)
class Step:
    """One pack. `there`: nothing is to be done; else it would be fetched from `host`, `size` bytes
    (None unknown)."""

    spec: PackSpec
    what: str
    there: bool = False
    host: str = ""
    size: int | None = None
    problem: DownloadError | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        data: dict[str, Any] = {
            "pack": self.spec.name,
            "source": str(self.spec.pin),
            "there": self.there,
            "what": self.what,
        }
        if self.host:
            data |= {"host": self.host, "size": self.size}
        if self.problem is not None:
            data["problem"] = self.problem.finding(self.spec.name, pack=self.spec.name).as_dict()
        return data

    def line(self) -> str:
        """For a terminal."""
        return step_line(self.spec.name, self.what, self.there, self.problem is not None)


def plan_packs(specs: Sequence[PackSpec], place: PackPlace, ask: bool) -> list[Step]:
    """What a pull would do; `ask` the servers whether they have what is missing."""
    return [_plan(spec, place, ask) for spec in specs]


def _plan(spec: PackSpec, place: PackPlace, ask: bool) -> Step:
    try:
        found = look(spec, place.nodes)
        if found.state is State.THERE:
            return Step(spec, f"{found.what} at {found.path}", there=True)
        if found.state is State.OCCUPIED:
            raise occupied(spec, found)
        host, size = place.sources.host_of(spec), place.sources.check(spec) if ask else None
    except OSError as problem:
        failed = disk_error(problem, place.nodes, None)
        return Step(spec, failed.message, problem=failed)
    except DownloadError as problem:
        return Step(spec, f"{problem.message} {problem.fix}", problem=problem)
    amount = "" if size is None else f"{size_text(size)} "
    instead = f", in place of {found.what}" if found.state is State.OTHER else ""
    return Step(spec, f"{amount}from {host}: {spec.pin}{instead}", host=host, size=size)


def main(
    argv: Sequence[str],
    out: TextIO | None = None,
    sources: PackSources | None = None,
    prog: str = _PROG,
) -> int:
    """Run one command; 0 when all is well, 1 when something is wrong or missing, 2 for usage.

    `sources` in place of the real ones are for tests, which have their own servers.
    """
    import sys

    arguments = _parser(prog).parse_args(argv)
    settings, findings = read_settings()
    set_up(settings.log_level)
    stream = sys.stdout if out is None else out
    if findings:
        return _FAILED if report(findings, stream) else _OK
    try:
        return _Command(arguments, settings, stream, sources, prog).run()
    except Unreadable as problem:
        report([problem.finding()], stream)
        return _FAILED


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="The custom node packs that a manifest names: add, see, fetch, check.",
        epilog=_closing(prog, _COMMANDS["add"][1:]),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, *examples) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text.capitalize()}.", epilog=_closing(prog, examples)
        )
        command.add_argument("--manifest", metavar="FILE", help="instead of NODES_MANIFEST")
        if name not in ("add", "map"):
            command.add_argument("--json", action="store_true", help="as JSON")
    _add_options(commands.choices["add"])
    commands.choices["pull"].add_argument(
        "--force", action="store_true", help="move what is in the way to custom_nodes/.disabled"
    )
    maps = commands.choices["map"]
    maps.add_argument("node", nargs="*", help="node classes to look up")
    maps.add_argument("--refresh", action="store_true", help="fetch the map")
    maps.add_argument("--url", default=MAP_URL, help="where it is, if not at ComfyUI-Manager's")
    return parser


def _closing(prog: str, examples: Iterable[str]) -> str:
    return closing(
        {
            "VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)",
            "NODES_MANIFEST": "the manifest or snapshot (default: nodes.json on the volume)",
            "DOWNLOAD_TOKEN": "for repositories at the host in DOWNLOAD_TOKEN_HOST",
        },
        [f"{prog} {example}" for example in examples],
        "exit codes:\n  0  all is well\n  1  something is missing or wrong\n  2  wrong use",
    )


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "pack", nargs="?", help="ID, ID@VERSION (Comfy Registry), or a git address, with @REF"
    )
    command.add_argument("--ref", help="branch, tag or commit of a git address")
    command.add_argument("--directory", help="folder in custom_nodes, if not the usual one")
    command.add_argument(
        "--from", dest="workflow", metavar="WORKFLOW", help="all packs that a workflow needs"
    )


class _Command:
    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Settings,
        out: TextIO,
        sources: PackSources | None,
        prog: str,
    ) -> None:
        self.prog = prog
        self.arguments = arguments
        self.settings = settings
        self.out = out
        self.layout = locate(settings)
        self.root = self.layout.root
        self.setting: str | None = settings.nodes_manifest
        if arguments.manifest is not None:
            self.setting = str(Path(arguments.manifest).absolute())
        place = place_for(settings, self.layout, meters_for(lines=PackMeter))
        self.place = replace(place, sources=sources or place.sources)

    def run(self) -> int:
        """The command's exit code."""
        if self.arguments.command in ("add", "map"):
            code: int = getattr(self, self.arguments.command)()
            return code
        http = self.settings.allow_private_download_urls
        manifest = load_nodes(self.setting, self.root, http)
        if manifest is None:
            self._say(f"No manifest: put one at {self.root / NODES.names[0]}, or add a pack:")
            self._say(f"  {self.prog} add comfyui-impact-pack")
            return _FAILED
        bad = _FAILED if report(manifest.findings, self.out) else _OK
        code = getattr(self, self.arguments.command)(manifest)
        return max(code, bad)

    def add(self) -> int:
        """Pin what is asked for, write the entries."""
        arguments = self.arguments
        if (arguments.pack is None) == (arguments.workflow is None):
            self._say("Give one of: a pack, or --from WORKFLOW.")
            return _USAGE
        path = find_manifest(self.setting, self.root, NODES) or self.root / NODES.names[0]
        if isinstance(path, str):
            self._say("NODES_MANIFEST holds the manifest itself; give --manifest FILE.")
            return _USAGE
        try:
            specs, complete = self._wanted()
            changed = add_packs(path, specs)
        except DownloadError as problem:
            self._say(f"error: {problem.message}\n  {problem.fix}")
            return _FAILED
        except OSError as problem:
            self._say(f"{path} cannot be written ({problem.strerror}).")
            return _FAILED
        for spec in specs:
            self._say(f"{'Added to' if spec in changed else 'Already in'} {path}:")
            self._say(json.dumps(spec.as_entry(), indent=2, ensure_ascii=False))
        if specs:
            self._say(f"Fetch what is missing with: {self.prog} pull")
        return _OK if complete else _FAILED

    def _wanted(self) -> tuple[list[PackSpec], bool]:
        """The packs to add, and whether every node has one."""
        if self.arguments.workflow is not None:
            return self._for_workflow(Path(self.arguments.workflow))
        pin = self._pin(self.arguments.pack, self.arguments.ref)
        return [_spec(pin, self.arguments.directory)], True

    def _pin(self, pack: str, ref: str | None) -> RegistryPin | GitPin:
        sources, http = self.place.sources, self.settings.allow_private_download_urls
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
            self._say("There is no map of nodes yet: it is fetched now.")
            known = self._refresh(MAP_URL)
        specs: dict[str, PackSpec] = {}
        unknown = []
        for needed in nodes_in(read_data(path, NODES)):
            try:
                specs.update((spec.name, spec) for spec in map(_spec, self._pins(needed, known)))
            except DownloadError as problem:
                self._say(f"{needed.name}: {problem.message}\n  {problem.fix}")
                unknown.append(needed.name)
            except LookupError:
                unknown.append(needed.name)
        if unknown:
            date = known.fetched
            self._say(f"No pack is known (map of {date}) that has: {named(sorted(unknown), 20)}.")
        if not specs and not unknown:
            self._say("The workflow needs no pack that is not there.")
        return list(specs.values()), not unknown

    def _pins(self, needed: Needed, known: NodeMap) -> list[RegistryPin | GitPin]:
        """The pack to add for a node, if one is to be: by what the editor wrote beside it, else by
        the map. Raises LookupError where none is known, and DownloadError."""
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
            return [self.place.sources.newest(needed.registry_id)]
        return self._in_git(needed, url, origin.packs, commit)

    def _in_registry(self, needed: Needed) -> list[RegistryPin | GitPin]:
        if (self.place.nodes / needed.registry_id).exists():
            return []
        if re.fullmatch(r"\d+\.\d+\.\d+", needed.version):
            return [RegistryPin(needed.registry_id, needed.version)]
        return [self.place.sources.newest(needed.registry_id)]

    def _in_git(
        self, needed: Needed, url: str, packs: Sequence[str], commit: str | None
    ) -> list[RegistryPin | GitPin]:
        if not url and not packs:
            raise LookupError(needed.name)
        if not url and len(packs) > 1:
            others = named(packs[1:], 3)
            self._say(f"{needed.name}: {packs[0]} is taken; others have it, too: {others}.")
        url = repository_url(url or packs[0], self.settings.allow_private_download_urls)
        if url.endswith(".py"):
            self._say(f"{needed.name} is in a single file: copy {url} into custom_nodes.")
            raise LookupError(needed.name)
        there = has_pack(url, self.place.nodes, self._repositories)
        return [] if there else [self.place.sources.pin(url, commit)]

    @cached_property
    def _repositories(self) -> frozenset[str]:
        """Of all packs in custom_nodes: read once, however many nodes a workflow has."""
        return repositories_in(self.place.nodes)

    def list(self, manifest: NodeManifest) -> int:
        """What is wanted; asks no server."""
        steps = plan_packs(manifest.packs, self.place, ask=False)
        self._show(steps)
        return _OK if all(step.there for step in steps) else _FAILED

    def plan(self, manifest: NodeManifest) -> int:
        """What would be fetched; asks the servers whether they have it."""
        steps = plan_packs(manifest.packs, self.place, ask=True)
        self._show(steps)
        return _FAILED if any(step.problem for step in steps) else _OK

    def pull(self, manifest: NodeManifest) -> int:
        """Fetch what is missing."""
        force = self.arguments.force
        results = pull(manifest.packs, self.place, stop_on_signals(), force)
        if self.arguments.json:
            self._say(json.dumps([result.as_dict() for result in results], indent=2))
        else:
            report([finding for result in results for finding in result.findings()], self.out)
            for result in results:
                if result.aside is not None:
                    self._say(f"{result.path} was there; it is now {result.aside}.")
            there = sum(result.good for result in results)
            self._say(f"{there} of {counted(len(results), 'pack')} there.")
        return _OK if all(result.good for result in results) else _FAILED

    def verify(self, manifest: NodeManifest) -> int:
        """Read everything that is there."""
        steps = [self._verified(spec) for spec in manifest.packs]
        self._show(steps)
        return _OK if all(step.there for step in steps) else _FAILED

    def _verified(self, spec: PackSpec) -> Step:
        try:
            good, what, problem = verify(spec, self.place.nodes)
        except OSError as failed:
            problem = disk_error(failed, self.place.nodes, None)
            good, what = False, problem.message
        return Step(spec, what, there=good, problem=problem)

    def map(self) -> int:
        """Which pack has which node."""
        try:
            known = (
                self._refresh(self.arguments.url) if self.arguments.refresh else kept_map(self.root)
            )
        except DownloadError as problem:
            self._say(f"error: {problem.message}\n  {problem.fix}")
            return _FAILED
        except OSError as problem:
            self._say(f"The map cannot be kept ({problem.strerror or problem}).")
            return _FAILED
        if known is None:
            self._say(f"No map of nodes is kept yet. Fetch it: {self.prog} map --refresh")
            return _FAILED
        if not self.arguments.node:
            nodes, packs = counted(len(known.nodes), "node"), counted(len(known.packs), "pack")
            self._say(f"Map of {known.fetched}: {nodes} of {packs}, from {known.source}")
            return _OK
        found = {name: known.origin_of(name) for name in self.arguments.node}
        for name, origin in found.items():
            where = "ComfyUI itself" if origin.core else ", ".join(origin.packs) or "unknown"
            self._say(f"{name}: {where}")
        return _OK if all(o.core or o.packs for o in found.values()) else _FAILED

    def _refresh(self, url: str) -> NodeMap:
        known = self.place.sources.fetch_map(url)
        keep_map(known, self.root)
        return known

    def _show(self, steps: Sequence[Step]) -> None:
        if self.arguments.json:
            self._say(json.dumps([step.as_dict() for step in steps], indent=2))
        else:
            self._say("\n".join(step.line() for step in steps))

    def _say(self, text: str) -> None:
        show(f"{masked(text)}\n", self.out)


def _spec(pin: RegistryPin | GitPin, directory: str | None = None) -> PackSpec:
    """As an entry of the manifest would be read. Raises DownloadError."""
    usual = pin.id if isinstance(pin, RegistryPin) else repository_name(pin.url)
    entry = PackSpec(directory or usual, pin).as_entry()
    return read_entry(entry, "", allow_http=True)
