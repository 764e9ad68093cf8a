"""Custom node packs as users have them: many small modules, all imported when ComfyUI starts.

15 packs, 2,000 files, 12 MB: 60 % are Python modules that the pack's `__init__` imports; the rest
is what else a checkout holds: browser scripts, JSON, documentation. Seeded: the same bytes each
time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKS = 15
FILES = 2_000
# Per 100 files of a pack, besides its __init__.py.
_MODULES, _SCRIPTS, _DATA = 60, 20, 12
_NODES_IN_A_PACK = 10

_HEAD = '''"""Nodes of {pack}: part {number}."""

import json
import math
import os

SETTINGS = {settings}

'''
_FUNCTION = '''
def {name}(values, scale={scale}, offset={offset}):
    """Weigh `values` by position, clamp and smooth them."""
    total = 0.0
    smoothed = []
    for index, value in enumerate(values):
        weighed = value * scale + math.sin(index * {offset}) * {scale}
        total = total * 0.9 + weighed * 0.1
        if weighed > SETTINGS["high"]:
            weighed = SETTINGS["high"]
        elif weighed < SETTINGS["low"]:
            weighed = SETTINGS["low"]
        smoothed.append(weighed + total)
    return smoothed

'''
_NODE = '''
class {name}:
    """A node that passes its number on."""

    @classmethod
    def INPUT_TYPES(cls):
        options = {{"default": {scale}, "min": 0.0, "max": 10.0}}
        return {{"required": {{"value": ("FLOAT", options)}}}}

    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "run"
    CATEGORY = "benchmark/{pack}"

    def run(self, value):
        return (value,)


NODE_CLASS_MAPPINGS = {{"{name}": {name}}}
'''
_INIT = '''"""{pack}: nodes in {count} modules."""

import importlib

NODE_CLASS_MAPPINGS = {{}}
WEB_DIRECTORY = "./web"
for _name in {names!r}:
    _module = importlib.import_module("." + _name, __name__)
    NODE_CLASS_MAPPINGS.update(getattr(_module, "NODE_CLASS_MAPPINGS", {{}}))
'''


@dataclass(frozen=True)
class Written:
    """What was written: number of packs, files and bytes."""

    packs: int
    files: int
    size: int


def write_node_packs(custom_nodes: Path, packs: int = PACKS, files: int = FILES) -> Written:
    """Write `files` files in `packs` packs into a `custom_nodes` folder; all import without errors.

    `files` is 10 a pack or more.
    """
    if files < 10 * packs:
        raise ValueError(f"{files} files for {packs} packs; allowed: {10 * packs} or more")
    source = random.Random(15)
    size = 0
    for i in range(packs):
        share = files * (i + 1) // packs - files * i // packs
        folder = custom_nodes / f"ComfyUI-Benchmark-Pack-{i:02d}"
        for name, text in _pack(f"Pack{i:02d}", share, source):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            size += path.stat().st_size
    return Written(packs, files, size)


def _pack(pack: str, files: int, source: random.Random) -> Iterator[tuple[str, str]]:
    """Relative path and text of each file of a pack."""
    modules = [f"parts{j % 4}.part{j:03d}" for j in range((files - 1) * _MODULES // 100)]
    inits = [f"parts{j}/__init__.py" for j in range(4)]
    yield "__init__.py", _INIT.format(pack=pack, count=len(modules), names=modules)
    for init in inits:
        yield init, ""
    for number, name in enumerate(modules):
        text = _module(pack, number, source)
        yield name.replace(".", "/") + ".py", text
    for j in range(files - 1 - len(inits) - len(modules)):
        yield _other(pack, j, source)


def _module(pack: str, number: int, source: random.Random) -> str:
    """A module of 2 to 20 KB; each of the first ones defines a node."""
    settings = {"high": round(source.uniform(5, 9), 3), "low": round(source.uniform(0, 1), 3)}
    parts = [_HEAD.format(pack=pack, number=number, settings=settings)]
    for j in range(source.choice((3, 5, 8, 12, 30))):
        numbers = {"scale": round(source.random(), 4), "offset": round(source.random(), 4)}
        parts.append(_FUNCTION.format(name=f"smooth_{number}_{j}", **numbers))
    if number < _NODES_IN_A_PACK:
        parts.append(_NODE.format(name=f"{pack}Node{number}", pack=pack, scale=1.0))
    return "".join(parts)


def _other(pack: str, number: int, source: random.Random) -> tuple[str, str]:
    """A file that ComfyUI does not open at start: a browser script, data or documentation."""
    kind = number % 40
    if kind < _SCRIPTS:
        line = f"export const value{number} = {source.random():.6f};\n"
        return f"web/script{number:03d}.js", line * source.choice((20, 100, 400))
    if kind < _SCRIPTS + _DATA:
        data = {f"key{k}": source.random() for k in range(source.choice((20, 200, 800)))}
        return f"data/table{number:03d}.json", json.dumps(data)
    return f"docs/page{number:03d}.md", f"# {pack} {number}\n\n" + "Some words of help. " * 100
