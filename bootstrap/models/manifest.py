"""Pure: the list of models, from our manifest or any saved ComfyUI workflow.

ComfyUI's templates declare models as `{name, url, hash, hash_type, directory}` at top level, in a
node's `properties.models` and in the nodes of subgraphs. Ours is a list of the same entries under
`{"version": 1, "models": [...]}` with a few fields more; `docs/models-manifest.schema.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from bootstrap.core.findings import Finding, error, info
from bootstrap.models.manifest_entry import FieldFault, ModelSpec, read_entry
from bootstrap.volume.categories import category_of

CODES = {
    "manifest.unreadable": "The manifest cannot be read, or is neither JSON nor YAML",
    "manifest.no_yaml": "The manifest is in YAML, which this Python cannot read",
    "manifest.too_large": "The manifest exceeds a limit",
    "manifest.shape": "The file is neither a manifest nor a saved workflow",
    "manifest.version": "The manifest's version is unknown to this worker",
    "manifest.field": "A field of an entry is missing or has an invalid value",
    "manifest.name": "A name or folder is not allowed, or leads out of `models/`",
    "manifest.url": "A URL cannot be used",
    "manifest.pickle": "A file that can run code is not both allowed and pinned by a SHA-256",
    "manifest.two_for_one_file": "Two entries give one file different contents",
    "manifest.case_twins": "Two names differ only in upper and lower case",
    "manifest.unknown_folder": "ComfyUI itself reads no such folder",
    "manifest.extension": "ComfyUI does not list files of this kind in this folder",
    "manifest.hash_type": "The hash is of a kind that is not checked",
    "manifest.no_models": "The manifest or workflow names no models",
}
VERSION = 1
MOST_MODELS = 20_000
_MUTED, _BYPASSED = 2, 4  # a node's `mode` in ComfyUI's frontend


@dataclass(frozen=True)
class Manifest:
    """A manifest's models. Entries with an error are left out; `findings` has all errors."""

    models: tuple[ModelSpec, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass
class _Reading:
    label: str
    lenient: bool
    findings: list[Finding] = field(default_factory=list)

    def add(self, where: str, fault: FieldFault) -> None:
        """Add a fault of the entry at `where`."""
        about = f"{self.label}, {where}"
        self.findings.append(fault.finding(about, fault.severity(self.lenient), entry=where))


def parse_manifest(data: Any, label: str = "manifest", allow_http: bool = False) -> Manifest:
    """The models of a decoded manifest or saved workflow. `label` names it in findings; all faults
    of all entries are reported together.
    """
    if not isinstance(data, Mapping):
        return _refused(label, "it is not a JSON object", _HOW)
    if is_workflow(data):
        return _collect(_in_workflow(data), label, True, allow_http)
    if _is_prompt(data):
        return _refused(
            label,
            "it is a workflow in API format, which does not say where models come from",
            "Save the workflow itself (in ComfyUI: File, Save), or write a manifest.",
        )
    if "models" not in data:
        return _refused(label, "it has no `models`", _HOW)
    if data.get("version") != VERSION:
        finding = error(
            "manifest.version",
            f"{label}: `version` is {data.get('version')!r:.40}; this worker knows {VERSION}.",
            f'Write `"version": {VERSION}`, or use a newer worker.',
        )
        return Manifest(findings=(finding,))
    models = data["models"]
    if not isinstance(models, Sequence) or isinstance(models, (str, bytes)):
        return _refused(label, "`models` is not a list", _HOW)
    return _collect(_numbered(models, "models"), label, False, allow_http)


def is_workflow(data: Mapping[str, Any]) -> bool:
    """Is this a workflow as ComfyUI saves it (*File, Save*)?"""
    return isinstance(data.get("nodes"), list) or isinstance(data.get("definitions"), Mapping)


def _collect(
    entries: Iterator[tuple[str, Any, bool]], label: str, workflow: bool, allow_http: bool
) -> Manifest:
    reading = _Reading(label, workflow)
    specs = []
    for where, entry, idle in islice(entries, MOST_MODELS):
        spec, faults = read_entry(entry, where, allow_http)
        for fault in faults:
            reading.add(where, fault)
        if spec is not None:
            specs.append(replace(spec, optional=True) if idle else spec)
    if any(True for _ in entries):
        reading.findings.append(too_many(label, MOST_MODELS, "models"))
    models = _unique(specs, reading)
    if not models and not reading.findings:
        reading.findings.append(info("manifest.no_models", f"{label} names no models."))
    return Manifest(tuple(models), tuple(reading.findings))


def too_many(label: str, most: int, what: str) -> Finding:
    """A manifest lists more than `most` of `what`."""
    return error(
        "manifest.too_large",
        f"{label} lists more than {most:,} {what}; the first {most:,} are read.",
        "Take out those that are not needed.",
    )


def _numbered(models: Sequence[Any], path: str) -> Iterator[tuple[str, Any, bool]]:
    for index, entry in enumerate(models):
        yield f"{path}[{index}]", entry, False


def _in_workflow(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """(where, entry, is its node muted or bypassed) of all models a workflow names."""
    models = data.get("models")
    if isinstance(models, list):
        yield from _numbered(models, "models")
    yield from _in_nodes(data.get("nodes"), "node")
    definitions = data.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    for graph in subgraphs if isinstance(subgraphs, list) else []:
        if isinstance(graph, Mapping):
            name = str(graph.get("name") or graph.get("id") or "?")[:60]
            yield from _in_nodes(graph.get("nodes"), f"subgraph {name!r}, node")


def _in_nodes(nodes: Any, label: str) -> Iterator[tuple[str, Any, bool]]:
    for node in nodes if isinstance(nodes, list) else []:
        properties = node.get("properties") if isinstance(node, Mapping) else None
        models = properties.get("models") if isinstance(properties, Mapping) else None
        if not isinstance(models, list):
            continue
        idle = node.get("mode") in (_MUTED, _BYPASSED)
        for where, entry, _ in _numbered(models, "models"):
            title = f"{label} {node.get('id', '?')} ({str(node.get('type', '?'))[:60]})"
            yield f"{title}, {where}", entry, idle


def _unique(specs: Sequence[ModelSpec], reading: _Reading) -> list[ModelSpec]:
    """One spec for each file: equal ones joined, conflicting ones reported and left out."""
    found: dict[PurePosixPath, ModelSpec] = {}
    by_folded: dict[str, PurePosixPath] = {}
    for spec in specs:
        place = canonical_place(spec)
        twin = by_folded.setdefault(str(place).casefold(), place)
        earlier = found.get(twin)
        if earlier is None:
            found[place] = spec
        elif twin != place:
            reading.add(spec.where, _twins(spec, earlier))
        elif (joined := _joined(earlier, spec)) is not None:
            found[place] = joined
        else:
            reading.add(spec.where, _conflict(spec, earlier))
    return list(found.values())


def canonical_place(spec: ModelSpec) -> PurePosixPath:
    """Where the file belongs, with aliases such as `clip` and `text_encoders` unified."""
    first, *rest = PurePosixPath(spec.directory).parts
    category = category_of(first)
    return PurePosixPath(category.folders[0] if category else first, *rest, spec.name)


def _joined(one: ModelSpec, other: ModelSpec) -> ModelSpec | None:
    """Both entries merged; None if they contradict each other."""
    same_hash = one.sha256 is not None and one.sha256 == other.sha256
    if one.url != other.url and not same_hash:
        return None
    for name in ("sha256", "size", "revision"):
        a, b = getattr(one, name), getattr(other, name)
        if a is not None and b is not None and a != b:
            return None
    return replace(
        one,
        sha256=one.sha256 or other.sha256,
        size=one.size if one.size is not None else other.size,
        revision=one.revision or other.revision,
        optional=one.optional and other.optional,
        allow_pickle=one.allow_pickle or other.allow_pickle,
    )


def _conflict(spec: ModelSpec, earlier: ModelSpec) -> FieldFault:
    return FieldFault(
        "manifest.two_for_one_file",
        "name",
        f"{spec.relative_path} is wanted with another content by {earlier.where} "
        f"({_without_query(earlier.url)} there, {_without_query(spec.url)} here); "
        "the first one counts.",
        "Give one of them another `name`, or remove it.",
        common=True,
    )


def _without_query(url: str) -> str:
    """Queries may contain signatures."""
    return url.partition("?")[0]


def _twins(spec: ModelSpec, earlier: ModelSpec) -> FieldFault:
    return FieldFault(
        "manifest.case_twins",
        "name",
        f"{spec.relative_path} and {earlier.relative_path} ({earlier.where}) differ in upper and "
        "lower case only, which not every file system tells apart.",
        "Spell both alike, or give one of them another `name`.",
    )


_HOW = 'Write {"version": 1, "models": [...]}, or give a saved ComfyUI workflow.'


def _refused(label: str, why: str, fix: str) -> Manifest:
    return Manifest(findings=(error("manifest.shape", f"{label}: {why}.", fix),))


def _is_prompt(data: Mapping[str, Any]) -> bool:
    return any(isinstance(node, Mapping) and "class_type" in node for node in data.values())
