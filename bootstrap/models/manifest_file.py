"""Manifests on disk or in a variable: finds, reads and extends them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.files import read_regular, write_whole
from bootstrap.core.findings import DOCS, Fault
from bootstrap.core.temp_files import beside, new_owner
from bootstrap.core.text import BOM, IN_ENDPOINT, trailing_comma, without_tabs
from bootstrap.models.manifest import VERSION, Manifest, is_workflow, parse_manifest
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.volume import Layout

MAX_BYTES = 32 * 1024 * 1024  # a workflow may hold pictures
MAX_YAML_BYTES = 1024 * 1024  # PyYAML needs seconds for more


@dataclass(frozen=True)
class ManifestKind:
    """A kind of manifest: its `variable`, its file `names` at the volume's root, and the
    documentation's `page` that describes it."""

    variable: str
    names: tuple[str, ...]
    page: str


MODELS = ManifestKind("MODELS_MANIFEST", ("models.json", "models.yaml", "models.yml"), "models")


class Unreadable(Fault):
    """The manifest cannot be read."""


def find_manifest(
    setting: str | None, root: Path, kind: ManifestKind = MODELS
) -> Path | str | None:
    """The variable's text as a path or an inline manifest; else the file at the volume's root; else
    None. Relative paths start at the volume's root."""
    if setting is None:
        return next((root / name for name in kind.names if os.path.isfile(root / name)), None)
    return setting if setting.lstrip()[:1] in ("{", "[") else root / setting


def load_manifest(setting: str | None, root: Path, allow_http: bool = False) -> Manifest:
    """The manifest of `setting` (MODELS_MANIFEST); an empty one if there is none."""
    source = find_manifest(setting, root)
    if source is None:
        return Manifest()
    try:
        label = MODELS.variable if isinstance(source, str) else str(source)
        return parse_manifest(read_data(source), label, allow_http)
    except Unreadable as problem:
        return Manifest(findings=(problem.finding(),))


def wanted_here(settings: Settings, layout: Layout) -> Manifest:
    """The manifest of MODELS_MANIFEST, or the volume's own."""
    http = settings.allow_private_download_urls
    return load_manifest(settings.models_manifest, layout.root, http)


def read_data(source: Path | str, kind: ManifestKind = MODELS) -> Any:
    """The decoded content of a manifest file, or of JSON text. Raises Unreadable."""
    label = kind.variable if isinstance(source, str) else str(source)
    try:
        return _decode(source, kind)
    except _Broken as why:
        place = "the file" if isinstance(source, Path) else f"it {IN_ENDPOINT}"
        fix = {
            "comma": f"Delete that comma in {place}.",
            "tab": f"Put two spaces in place of each tab: `{without_tabs(label)}`.",
        }.get(why.kind, f"Correct {place}; {DOCS}/{kind.page}/ shows how it looks.")
        raise Unreadable("manifest.unreadable", f"{label} {why}.", fix) from None
    except _NoYaml:
        raise _no_yaml(label) from None


class _NoYaml(Exception):
    """This Python has no PyYAML."""


class _Broken(Exception):
    """The text cannot be decoded; the message completes "FILE ...". `kind` is `comma` or `tab` for
    what has a fix of its own."""

    def __init__(self, said: str, kind: str = "") -> None:
        super().__init__(said)
        self.kind = kind


def _decode(source: Path | str, kind: ManifestKind) -> Any:
    if isinstance(source, str):
        return _decode_json(source)
    try:
        size = source.stat().st_size
        yaml = source.suffix.lower() in (".yaml", ".yml")
        limit = MAX_YAML_BYTES if yaml else MAX_BYTES
        if size > limit:
            raise _too_large(source, size, limit)
        text = read_regular(source, limit).decode("utf-8-sig")
    except UnicodeError:
        raise _Broken("is not UTF-8 text") from None
    except OSError as problem:
        why = problem.strerror or str(problem)
        raise Unreadable(
            "manifest.unreadable",
            f"{source} cannot be read ({why}).",
            f"Put the manifest there, or correct or remove {kind.variable}.",
        ) from None
    return _decode_yaml(text) if yaml else _decode_json(text)


def add_entry(path: Path, spec: ModelSpec) -> bool:
    """Write `spec` into the manifest at `path`, replacing an entry for the same file; True if the
    file changed. Other entries and unknown fields stay. Raises Unreadable and OSError."""
    data: Any = read_data(path) if os.path.exists(path) else {"version": VERSION, "models": []}
    if not isinstance(data, dict) or is_workflow(data) or not isinstance(data.get("models"), list):
        raise Unreadable(
            "manifest.unreadable",
            f"{path} is not a manifest that entries can be added to.",
            f"Correct the file; {DOCS}/{MODELS.page}/ shows how it looks.",
        )
    models: list[Any] = data["models"]
    entry = spec.as_entry()
    for index, old in enumerate(models):
        if isinstance(old, Mapping) and _same_place(old, spec):
            merged = {**old, **entry}
            if merged == old:
                return False
            models[index] = merged
            break
    else:
        models.append(entry)
    write_data(path, data)
    return True


def _same_place(entry: Mapping[str, Any], spec: ModelSpec) -> bool:
    return (entry.get("directory"), entry.get("name")) == (spec.directory, spec.name)


def write_data(path: Path, data: Any) -> None:
    """Write a manifest, complete or not at all; if `path` is a link, its target. Raises OSError."""
    path = Path(os.path.realpath(path))
    if path.suffix.lower() in (".yaml", ".yml"):
        import yaml

        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        # Half a character, which JSON can express (`"\ud800"`) but UTF-8 cannot.
        text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text, path.with_name(beside(path.name, new_owner(), "receipt-new")))


def _decode_json(text: str) -> Any:
    try:
        return json.loads(text.removeprefix(BOM))
    except RecursionError:
        raise _Broken("is nested too deeply") from None
    except json.JSONDecodeError as problem:
        raise _json_fault(problem) from None
    except ValueError as problem:  # a number with thousands of digits
        raise _Broken(f"is not valid JSON ({problem})") from None


def _json_fault(problem: json.JSONDecodeError) -> _Broken:
    """Where and what; usually a comma before a closing bracket."""
    if found := trailing_comma(problem):
        where = f"line {found[0]}, column {found[1]}"
        return _Broken(f"is not valid JSON: there is a comma too many in {where}", "comma")
    what = problem.msg[:1].lower() + problem.msg[1:]
    where = f"line {problem.lineno}, column {problem.colno}"
    return _Broken(f"is not valid JSON: {what} in {where}")


def _decode_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise _NoYaml from None

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Aliases can expand exponentially ("billion laughs"); manifests need none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, loader)):
            raise _Broken("uses YAML aliases (`*name`)")
        return yaml.load(text, loader)  # noqa: S506 - the safe loader, in C where there is one
    except RecursionError:
        raise _Broken("is nested too deeply") from None
    except yaml.YAMLError as problem:
        raise _yaml_fault(problem, text) from None
    except ValueError as problem:  # dates such as 2026-99-99
        raise _Broken(f"is not valid YAML ({problem})") from None


def _yaml_fault(problem: Exception, text: str) -> _Broken:
    """Where, and what; most often a tab before the line's first word."""
    mark, said = getattr(problem, "problem_mark", None), getattr(problem, "problem", None)
    if mark is None:
        return _Broken(f"is not valid YAML ({' '.join(str(problem).split())[:200]})")
    line = [*text.splitlines(), ""][mark.line]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return _Broken(f"is not valid YAML: line {mark.line + 1} is indented with a tab", "tab")
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    return _Broken(f"is not valid YAML: {said} in {where}")


def _no_yaml(label: str) -> Unreadable:
    return Unreadable(
        "manifest.no_yaml",
        f"{label} cannot be read: this Python has no PyYAML.",
        "Install PyYAML, or write the manifest as JSON.",
    )


def _too_large(path: Path, size: int, limit: int) -> Unreadable:
    return Unreadable(
        "manifest.too_large",
        f"{path} has {size:,} bytes; the most is {limit:,}.",
        "Split it, or take out what does not belong in a manifest.",
    )
