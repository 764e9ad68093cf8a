"""The project's own modules as syntax trees, for tests of what they import and name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def modules() -> dict[str, ast.Module]:
    """Dotted name → tree, for every module of `bootstrap` and `handler`."""
    return trees("bootstrap", "handler")


@functools.cache
def trees(*packages: str) -> dict[str, ast.Module]:
    """Dotted name → tree, for every module of `packages`."""
    found: dict[str, ast.Module] = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


@functools.cache
def imports(name: str) -> set[str]:
    """What a module imports, anywhere in it, as dotted names; `from a import b` is `a.b` if that
    is one of our modules, else `a`."""
    found: set[str] = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules() else base)
    return found


def all_needed_by(names: set[str]) -> set[str]:
    """Our modules that are loaded with `names`, themselves and their packages included."""
    needed: set[str] = set()
    pending = set(names)
    while pending:
        name = pending.pop()
        needed.add(name)
        more = {i for i in imports(name) if i in modules()}
        if "." in name:
            more.add(name.rpartition(".")[0])
        pending |= more - needed
    return needed


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (*child.decorator_list, child.args):
                yield from run_at_import(part)
        elif not isinstance(child, ast.Lambda):
            yield child
            yield from run_at_import(child)
