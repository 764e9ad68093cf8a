"""Pure: what a prompt produced, by its history, and the names of its files as results."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_OUTPUT = "the workflow ran, but its nodes reported no output"
_MAX_DEPTH = 8
_TEXT_KEYS = frozenset(("text", "texts", "string", "strings"))
# Any other text may be a file name, under any key; each costs a disk access.
_LONGEST_PATH = 1024
_MOST_GUESSES = 1000
_LONGEST_NAME = 240  # bytes; file systems take 255


@dataclass(frozen=True)
class ProducedFile:
    """A file that a node reported; `type` is ComfyUI's: output, temp or input. Some nodes also
    report a `fullpath`. One that was only `guessed` from text is usually not a file: only the disk
    shows that."""

    node_id: str = field(compare=False)
    filename: str
    subfolder: str
    type: str
    fullpath: str | None = field(default=None, compare=False)
    guessed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ProducedText:
    """Text that a node reported."""

    node_id: str
    text: str


Produced = ProducedFile | ProducedText


def produced(
    outputs: Mapping[str, Any], include_temp: bool = False
) -> tuple[list[Produced], list[str]]:
    """Everything in a history entry's outputs, each file once per node, and warnings. Previews
    (type `temp`) count only if requested, or if there is certainly nothing else.
    """
    found = list(_once(_all(outputs)))
    if not found:
        return [], [NO_OUTPUT]
    results = [p for p in found if isinstance(p, ProducedText) or p.type != "temp"]
    if include_temp or len(results) == len(found):
        return found, []
    if any(isinstance(p, ProducedText) or not p.guessed for p in results):
        return results, []
    return found, ["only previews were produced; use SaveImage to keep results"]


def _once(items: Iterator[Produced]) -> Iterator[Produced]:
    """Each file once per node that reports it: ComfyUI answers a node that repeats another with
    that one's file. Texts may repeat. A certain name makes a guess unnecessary."""
    seen: set[tuple[str, ProducedFile]] = set()
    guesses = 0
    for item in items:
        if isinstance(item, ProducedFile):
            guesses += item.guessed
            if (item.node_id, item) in seen or (item.guessed and guesses > _MOST_GUESSES):
                continue
            seen.add((item.node_id, item))
        yield item


def _all(outputs: Mapping[str, Any]) -> Iterator[Produced]:
    for node_id, output in outputs.items():
        if isinstance(output, Mapping):
            for key, value in output.items():
                yield from _within(str(node_id), str(key), value, _MAX_DEPTH)


def _within(node_id: str, key: str, value: Any, depth: int) -> Iterator[Produced]:
    """A node's value under `key` in any shape: items, lists of them, nested objects."""
    if depth == 0:
        return
    if isinstance(value, Mapping):
        if isinstance(value.get("filename"), str):
            yield _file(node_id, value)
        else:
            for inner_key, inner in value.items():
                yield from _within(node_id, str(inner_key), inner, depth - 1)
    elif isinstance(value, (list, tuple)):
        for inner in ["".join(value)] if _is_torn(value) else value:
            yield from _within(node_id, key, inner, depth - 1)
    elif key in _TEXT_KEYS and value is not None:
        yield ProducedText(node_id, value if isinstance(value, str) else str(value))
    elif isinstance(value, str) and 0 < len(value) <= _LONGEST_PATH and "\n" not in value:
        yield _path(node_id, value)


def _is_torn(items: Sequence[Any]) -> bool:
    """ComfyUI treats a node's report as a list, so a string becomes a list of characters."""
    return len(items) > 1 and all(isinstance(item, str) and len(item) == 1 for item in items)


def _file(node_id: str, item: Mapping[str, Any]) -> ProducedFile:
    fullpath = item.get("fullpath")
    return ProducedFile(
        node_id,
        item["filename"],
        str(item.get("subfolder") or ""),
        str(item.get("type") or "output"),
        fullpath if isinstance(fullpath, str) else None,
    )


def _path(node_id: str, text: str) -> ProducedFile:
    """A path relative to the output folder, to ComfyUI's own, or absolute: only the disk shows
    which, and whether it is a file."""
    subfolder, name = posixpath.split(text.replace("\\", "/"))
    return ProducedFile(node_id, name, subfolder, "output", text, guessed=True)


def saved_as(local: Path, output: Path, job_tag: str) -> tuple[Path, str]:
    """(subfolder, name) for a file from ComfyUI's own `output` folder, as a result."""
    return Path(as_text(str(local.parent.relative_to(output)))), tagged(local.name, job_tag)


def tagged(name: str, job_tag: str) -> str:
    """`name` with the job's tag before its extension: `a_00001_.png` → `a_00001_TAG.png`. It is cut
    to a length that every file system takes, and a number may still be added."""
    path = Path(as_text(name))
    suffix = _cut(path.suffix, _LONGEST_NAME // 2)
    tag = job_tag if path.stem.endswith("_") else f"_{job_tag}"
    stem = _cut(path.stem, _LONGEST_NAME - len(f"{tag}{suffix}".encode()))
    return f"{stem}{tag}{suffix}"


def as_text(name: str) -> str:
    """A file's name, with `?` for what is not UTF-8, which no bucket, zip file or reply takes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode("utf-8", "ignore")
