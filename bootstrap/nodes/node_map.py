"""Which pack has a node: ComfyUI-Manager's map, fetched on demand and kept on the volume.

    .comfyui-worker/node-map.json   {"version": 1, "fetched": "2026-11-28", "source": …, "packs":
                                    [[address, title], …], "nodes": {class: [number of a pack, …]}}

The map is `{address: [[class, …], {"title_aux": …, "preemptions": [class, …], "nodename_pattern":
…}]}`. Its patterns are untrusted regular expressions: only plain prefixes, suffixes and substrings
of names are used. A job never waits for the network: it reads the kept file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bootstrap.core.files import part_beside, read_regular, write_whole
from bootstrap.net import DownloadError
from bootstrap.nodes.manifest import REGISTRY_ID
from bootstrap.nodes.presence import has_pack, repositories_in
from bootstrap.volume.locate import OWN_FOLDER

CODES = {"nodes.bad_map": "What was fetched is not a map of nodes to packs"}
# ComfyUI itself, by the map's address and by its present one.
CORE = "https://github.com/comfyanonymous/ComfyUI"
_CORE = {CORE, "https://github.com/Comfy-Org/ComfyUI"}
_VERSION = 1
#: Largest map, in bytes.
MOST_MAP = 64 * 1024 * 1024
_MOST_PACKS = 100_000
_MOST_NAMES = 2_000_000
_LONGEST = 300
# It is shown as part of a command, so without characters that a shell interprets.
_ADDRESS = re.compile(r"https://[\w.~/%+@:-]{1,290}", re.ASCII)
_PLAIN = re.compile(r"(\^)?((?:[\w \-:/.,+&#@!'\"]|\\[()\[\]{}|.+*?^$ -])+)(\$)?")
_AT_GITHUB = re.compile(r"\w[\w.-]{0,99}/\w[\w.-]{0,99}", re.ASCII)
_REVISION = re.compile(r"\w[\w.+-]{0,99}", re.ASCII)
# Known only to the editor: subgraphs (their ids), group nodes, and its own helpers.
EDITOR_ONLY = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|workflow[>/].*"
    r"|Note|MarkdownNote|Reroute|PrimitiveNode",
    re.DOTALL,
)


@dataclass(frozen=True)
class Origin:
    """The packs that have a node, likeliest first; `core`: ComfyUI itself has it. `installed`: the
    first of them is in custom_nodes."""

    packs: tuple[str, ...] = ()
    core: bool = False
    installed: bool = False


@dataclass(frozen=True)
class NodeMap:
    """Which pack has which node, as it was on the day `fetched` (YYYY-MM-DD)."""

    fetched: str
    source: str
    packs: tuple[tuple[str, str], ...]
    nodes: Mapping[str, tuple[int, ...]]
    parts: tuple[tuple[str, str, int], ...] = field(default=(), repr=False)

    def origin_of(self, name: str) -> Origin:
        """Which packs have a node class, by the map."""
        found = [self.packs[number][0] for number in self.nodes.get(name, ())]
        if _CORE & set(found):
            return Origin(core=True)
        if not found:
            found = [
                self.packs[number][0]
                for kind, text, number in self.parts
                if _fits(kind, text, name)
            ]
        return Origin(tuple(dict.fromkeys(found)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "version": _VERSION,
            "fetched": self.fetched,
            "source": self.source,
            "packs": [list(pack) for pack in self.packs],
            "nodes": {name: list(numbers) for name, numbers in self.nodes.items()},
            "parts": [list(part) for part in self.parts],
        }


def _fits(kind: str, text: str, name: str) -> bool:
    if kind == "begins":
        return name.startswith(text)
    if kind == "ends":
        return name.endswith(text)
    return name == text if kind == "is" else text in name


def map_path(root: Path) -> Path:
    """Where the map is kept on the volume."""
    return root / OWN_FOLDER / "node-map.json"


def kept_map(root: Path) -> NodeMap | None:
    """The map kept on the volume; None if there is none, or it cannot be read."""
    path = map_path(root)
    try:
        data = json.loads(read_regular(path, MOST_MAP))
        if data["version"] != _VERSION:
            return None
        packs = tuple((str(url), str(title)) for url, title in data["packs"])
        known = range(len(packs))
        nodes = {str(k): tuple(n for n in v if n in known) for k, v in data["nodes"].items()}
        parts = tuple((str(k), str(t), n) for k, t, n in data["parts"] if n in known)
        return NodeMap(str(data["fetched"])[:10], str(data["source"]), packs, nodes, parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def keep_map(made: NodeMap, root: Path) -> None:
    """Write it to the volume, complete or not at all. Raises OSError."""
    path = map_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(made.as_dict(), ensure_ascii=False), part_beside(path))


def read_map(content: bytes, fetched: str, source: str) -> NodeMap:
    """Parse ComfyUI-Manager's map. Raises DownloadError if it is not one."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        data = None
    entries = list(_entries(data))
    if not entries:
        raise DownloadError(
            "nodes.bad_map",
            f"{source} is not a map of nodes: {{address: [[node, ...], {{...}}]}}.",
            "Give the address of ComfyUI-Manager's extension-node-map.json.",
        )
    nodes: dict[str, list[int]] = {}
    first: dict[str, int] = {}
    parts: list[tuple[str, str, int]] = []
    packs: list[tuple[str, str]] = []
    for url, names, more in entries:
        number = len(packs)
        packs.append((url, _text(more.get("title_aux"))))
        for name in names:
            nodes.setdefault(name, []).append(number)
        for name in _texts(more.get("preemptions")):
            first[name] = number
        parts += [(kind, text, number) for kind, text in _parts(more.get("nodename_pattern"))]
    for name, number in first.items():
        others = [n for n in nodes.get(name, []) if n != number]
        nodes[name] = [number, *others]
    return NodeMap(
        fetched, source, tuple(packs), {k: tuple(v) for k, v in nodes.items()}, tuple(parts)
    )


def _entries(data: Any) -> Iterator[tuple[str, list[str], Mapping[str, Any]]]:
    left = _MOST_NAMES
    for url, value in list(data.items())[:_MOST_PACKS] if isinstance(data, Mapping) else ():
        if not isinstance(value, list) or not value or not _ADDRESS.fullmatch(url):
            continue
        names = _texts(value[0])[: max(left, 0)]
        left -= len(names)
        more = value[1] if len(value) > 1 and isinstance(value[1], Mapping) else {}
        yield url.rstrip("/"), names, more


def _texts(value: Any) -> list[str]:
    return (
        [v for v in value if isinstance(v, str) and v == _text(v)]
        if isinstance(value, list)
        else []
    )


def _text(value: Any) -> str:
    """The text if it is short and printable, else empty."""
    good = isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
    return str(value) if good else ""


def _parts(pattern: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of a pattern that needs no regular expression."""
    match = (
        _PLAIN.fullmatch(pattern) if isinstance(pattern, str) and len(pattern) < _LONGEST else None
    )
    if match is None or re.search(r"(?<!\\)\.", match[2]):
        return
    text = re.sub(r"\\(.)", r"\1", match[2])
    if len(text) > 2:
        kind = {(True, True): "is", (True, False): "begins", (False, True): "ends"}
        yield kind.get((bool(match[1]), bool(match[3])), "has"), text


@dataclass(frozen=True)
class UsedNode:
    """A node class that a workflow uses, with what ComfyUI's editor wrote beside it: the pack's id
    in the registry (`comfy-core` is ComfyUI itself), its `owner/name` at GitHub, its version or
    commit."""

    name: str
    registry_id: str = ""
    github: str = ""
    version: str = ""


def nodes_in(data: Any) -> list[UsedNode]:
    """The node classes of a workflow, saved or in API format, each once. What only the editor
    knows (notes, reroutes, subgraphs) is left out."""
    found: dict[str, UsedNode] = {}
    for name, properties in _nodes_in(data):
        if not isinstance(name, str) or not name or EDITOR_ONLY.fullmatch(name):
            continue
        needed = UsedNode(
            name,
            _like(REGISTRY_ID, properties.get("cnr_id")),
            _like(_AT_GITHUB, properties.get("aux_id")),
            _like(_REVISION, properties.get("ver")),
        )
        if name not in found or needed.registry_id:
            found[name] = needed
    return list(found.values())


def _like(form: re.Pattern[str], value: Any) -> str:
    """The text if it has that form, else empty: a workflow is untrusted."""
    text = _text(value).strip()
    return text if form.fullmatch(text) else ""


def _nodes_in(data: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    if not isinstance(data, Mapping):
        return
    if isinstance(data.get("nodes"), list):
        groups = _values(_mapping(data.get("extra")).get("groupNodes"))
        subgraphs = _mapping(data.get("definitions")).get("subgraphs")
        for graph in (data, *groups, *(subgraphs if isinstance(subgraphs, list) else ())):
            nodes = _mapping(graph).get("nodes")
            for node in nodes if isinstance(nodes, list) else ():
                yield _mapping(node).get("type"), _mapping(_mapping(node).get("properties"))
        return
    for key in ("input", "workflow", "prompt"):  # as it is sent in a request
        if isinstance(data.get(key), Mapping):
            yield from _nodes_in(data[key])
            return
    for node in _values(data):
        if isinstance(node, Mapping):
            yield node.get("class_type"), {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else ()


def where_nodes_are(root: Path, nodes: Path, names: Iterable[str]) -> tuple[str, dict[str, Origin]]:
    """(the map's date, origin by class) of node classes, by the kept map; the date is empty without
    one. `nodes` is custom_nodes. Reads the volume, never the network. Raises OSError."""
    known = kept_map(root)
    if known is None:
        return "", {}
    found = {name: known.origin_of(name) for name in names}
    there = (
        repositories_in(nodes) if any(origin.packs for origin in found.values()) else frozenset()
    )

    def looked_up(origin: Origin) -> Origin:
        installed = bool(origin.packs) and has_pack(origin.packs[0], nodes, there)
        return replace(origin, installed=installed)

    return known.fetched, {name: looked_up(origin) for name, origin in found.items()}
