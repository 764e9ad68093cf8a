"""Every code of a finding or a job's error is listed once, and every listed one is used."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.sources import modules

MAKERS = {
    *("DownloadError", "FieldFault", "Finding", "JobError", "StartFault", "Unreadable"),
    *("error", "host_error", "warning", "info", "ok"),
}


def code_tables(tree: ast.Module) -> Iterator[ast.Dict]:
    """The `CODES = {…}` of a module."""
    for node in tree.body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(value, ast.Dict) and "CODES" in [getattr(t, "id", "") for t in targets]:
            yield value


def listed_in(tree: ast.Module) -> dict[str, str]:
    return {
        str(key.value): str(getattr(value, "value", ""))
        for table in code_tables(tree)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant)
    }


def texts(node: ast.AST) -> Iterator[str]:
    """Patterns of the texts an expression can be: a constant, either side of a condition, or
    an f-string with anything in its gaps."""
    if isinstance(node, ast.JoinedStr):
        parts = (
            re.escape(getattr(part, "value", "")) if isinstance(part, ast.Constant) else r"\w+"
            for part in node.values
        )
        yield "".join(parts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.escape(node.value)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def used_in(tree: ast.Module) -> set[str]:
    """Patterns of codes that stand as the first argument of a finding or a job's error."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in MAKERS:
            found.update(texts(node.args[0]))
    return found


def texts_outside_tables(tree: ast.Module) -> set[str]:
    inside = {id(key) for table in code_tables(tree) for key in table.keys}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
    }


ALL = {name: listed_in(tree) for name, tree in modules().items()}
LISTED = {code for codes in ALL.values() for code in codes}


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_code_that_is_used_is_listed(name: str) -> None:
    unlisted = {
        pattern
        for pattern in used_in(modules()[name])
        if not any(re.fullmatch(pattern, code) for code in LISTED)
    }
    assert unlisted == set()


def test_every_code_that_is_listed_is_used() -> None:
    trees = modules().values()
    named = {text for tree in trees for text in texts_outside_tables(tree)}
    formed = [
        pattern
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for pattern in texts(node)
        if re.match(r"[a-z]+\\\.[a-z]", pattern)
    ]
    unused = {c for c in LISTED - named if not any(re.fullmatch(p, c) for p in formed)}
    assert unused == set()


def test_no_code_is_listed_twice() -> None:
    counted = Counter(code for codes in ALL.values() for code in codes)
    assert [code for code, times in counted.items() if times > 1] == []


def test_codes_have_a_family_and_a_meaning() -> None:
    for codes in ALL.values():
        for code, meaning in codes.items():
            assert re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", code), code
            assert meaning and not meaning.endswith("."), code


def test_the_trees_are_really_read() -> None:
    used = {pattern for tree in modules().values() for pattern in used_in(tree)}
    known = ("settings.invalid", "workflow.missing", "comfyui.died", "links.made")
    assert {re.escape(code) for code in known} <= used
