"""Every regular expression of our packages against long input meant to make it backtrack; run as a
program, since one that hangs blocks its process.

    python -m tests.support.pattern_fuzz LENGTH SECONDS

Patterns are found in the syntax trees, with the methods that use each (`match`, `finditer` …), and
the input is made from the pattern itself: what comes before a repetition, then what it repeats,
again and again, and then something that does not fit. Prints JSON: `patterns` (how many), `unknown`
(known only at run time), `slow` (took more than SECONDS of CPU time for one text of LENGTH).
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Private, and called so since 3.11.
_PLACE = "re._{}" if sys.version_info >= (3, 11) else "sre_{}"
parser: Any = importlib.import_module(_PLACE.format("parser" if "." in _PLACE else "parse"))
constant: Any = importlib.import_module(_PLACE.format("constants"))
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("bootstrap", "handler", "scripts")
# Where each function of `re` takes its flags; a compiled pattern's methods take none.
_FLAGS_AT = {
    "compile": 1,
    "search": 2,
    "match": 2,
    "fullmatch": 2,
    "findall": 2,
    "finditer": 2,
    "split": 4,
    "sub": 5,
}
_MOST_ATOMS = 14


@dataclass(frozen=True)
class Used:
    """A pattern, where it is, and the methods that use it."""

    where: str
    pattern: re.Pattern[Any]
    methods: frozenset[str]


def used_patterns() -> tuple[list[Used], list[str]]:
    """All of them, and the places whose pattern is known only at run time."""
    found: list[Used] = []
    unknown: list[str] = []
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            if path.name != "__main__.py" and "re." in (text := path.read_text("utf-8")):
                _collect(path, ast.parse(text), found, unknown)
    return found, unknown


def _collect(path: Path, tree: ast.Module, found: list[Used], unknown: list[str]) -> None:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _of_re(node)]
    if not calls:
        return
    name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    names = vars(importlib.import_module(name))
    methods = _methods_by_name(tree)
    constants = {
        id(node.value): target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        how, where = call.func.attr, f"{path.relative_to(_ROOT)}: {ast.unparse(call.args[0])}"
        at = _FLAGS_AT[how]
        flags = [k.value for k in call.keywords if k.arg == "flags"] or call.args[at : at + 1]
        try:
            pattern = re.compile(
                _value(call.args[0], names), _value(flags[0], names) if flags else 0
            )
        except NameError:
            unknown.append(where)
            continue
        by = methods.get(constants.get(id(call), "")) if how == "compile" else {how}
        found.append(Used(where, pattern, frozenset(by or {"fullmatch", "finditer"})))


def _of_re(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in _FLAGS_AT
    )


def _methods_by_name(tree: ast.Module) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _FLAGS_AT:
            found.setdefault(ast.unparse(node.value), set()).add(node.attr)
    return found


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of `node`; parts known only at run time become `word`."""
    bound = dict(names)
    while True:
        try:
            return eval(compile(ast.Expression(node), "pattern", "eval"), bound)  # noqa: S307 - ours
        except NameError as problem:
            if problem.name is None or isinstance(node, ast.Name):
                raise
            bound[problem.name] = "word"


def texts(pattern: re.Pattern[Any], length: int) -> Iterator[Any]:
    """Long texts that make `pattern` backtrack, each once."""
    tree = parser.parse(pattern.pattern, pattern.flags)
    pumps = [("", pump) for pump in (*_atoms(tree)[:_MOST_ATOMS], "\n", " ", "\n    a", "a ", "<")]
    pumps += [("", _sample(tree)), *_repeated(tree, "")]
    seen = set()
    for before, pump in pumps:
        for piece, times in ((pump, 1), (before + pump, 0)):
            for end in ("", "\x00", "\n!"):
                text = before * times + piece * (length // max(len(piece), 1)) + end
                if piece and text not in seen:
                    seen.add(text)
                    yield text if isinstance(pattern.pattern, str) else text.encode()


def _atoms(tree: Any) -> list[str]:
    """One character of each class and literal in the pattern."""
    found: list[str] = []
    for op, value in tree:
        if op is constant.LITERAL:
            found.append(chr(value))
        elif op is constant.NOT_LITERAL:
            found.append("b" if value == ord("a") else "a")
        elif op is constant.ANY:
            found.append("a")
        elif op is constant.IN:
            found += _members(value)
        else:
            found += [atom for part in _parts(op, value) for atom in _atoms(part)]
    return list(dict.fromkeys(found))


def _members(members: Any) -> list[str]:
    if members[0][0] is constant.NEGATE:
        return ["a", " ", "."]
    of_category = {constant.CATEGORY_SPACE: " ", constant.CATEGORY_DIGIT: "1"}
    found = []
    for op, value in members:
        if op is constant.LITERAL:
            found.append(chr(value))
        elif op is constant.RANGE:
            found.append(chr(value[0]))
        else:
            found.append(of_category.get(value, "a"))
    return found


def _parts(op: Any, value: Any) -> list[Any]:
    if op in (constant.MAX_REPEAT, constant.MIN_REPEAT):
        return [value[2]]
    if op is constant.SUBPATTERN:
        return [value[3]]
    if op is constant.BRANCH:
        return list(value[1])
    return [value[1]] if op in (constant.ASSERT, constant.ASSERT_NOT) else []


def _sample(tree: Any) -> str:
    """A text that the pattern matches, as far as that is easy to tell."""
    text = ""
    for op, value in tree:
        if op in (constant.MAX_REPEAT, constant.MIN_REPEAT):
            text += _sample(value[2]) * value[0]
        elif op in (constant.SUBPATTERN, constant.BRANCH):
            text += _sample(_parts(op, value)[0])
        elif op not in (constant.ASSERT, constant.ASSERT_NOT):
            text += (_atoms([(op, value)]) or [""])[0]
    return text


def _repeated(tree: Any, before: str) -> Iterator[tuple[str, str]]:
    """For each repetition, what must come before it and what it can repeat."""
    for op, value in tree:
        if op in (constant.MAX_REPEAT, constant.MIN_REPEAT) and value[1] > 20:
            yield from ((before, atom) for atom in (*_atoms(value[2]), _sample(value[2])))
        for part in _parts(op, value):
            yield from _repeated(part, before)
        before += _sample([(op, value)])


class _Slow(Exception):
    pass


def _too_slow(*_: Any) -> None:
    raise _Slow


def _applied(pattern: re.Pattern[Any], method: str, text: Any) -> None:
    act: Callable[..., Any] = getattr(pattern, method)
    if method in ("finditer", "findall"):
        for _ in pattern.finditer(text):
            pass
    elif method == "sub":
        act(b"" if isinstance(text, bytes) else "", text)
    else:
        act(text)


def slow_ones(used: list[Used], length: int, limit: float) -> list[str]:
    """Descriptions of the patterns that take `limit` seconds of CPU time for one text."""
    signal.signal(signal.SIGVTALRM, _too_slow)
    found = []
    for one in used:
        for method in sorted(one.methods):
            for text in texts(one.pattern, length):
                signal.setitimer(signal.ITIMER_VIRTUAL, limit)
                try:
                    _applied(one.pattern, method, text)
                except _Slow:
                    found.append(f"{one.where} ({method}): {text[:40]!r}…")
                    break
                finally:
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return found


def main(length: int, limit: float) -> None:
    """Fuzz all patterns, print the results."""
    used, unknown = used_patterns()
    slow = slow_ones(used, length, limit)
    print(json.dumps({"patterns": len(used), "unknown": unknown, "slow": slow}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
