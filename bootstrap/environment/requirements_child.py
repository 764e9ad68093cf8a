"""Judges requirements in ComfyUI's own Python. A script: `python -I -B requirements_child.py`.

Reads a JSON object from stdin and prints one on the last line of stdout; requirements.py has
types for both. PEP 440 and 508 are handled by `packaging`, from that Python or its pip;
`importlib.metadata` reads what is installed. No other installed package is imported:
modules are only searched for. Must run on any Python from 3.8.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import site
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from typing import Any

MOST_PACKAGES = 3000
MOST_LINE = 1000
MOST_REQUIREMENTS = 300
THREADS = 16  # reading one record costs a round trip on a network volume
MOST_DEPTH = 3
ADDRESS = re.compile(r"(?:(?:git|hg|svn|bzr)\+)?[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
EGG = re.compile(r"[#&]egg=([A-Za-z0-9][A-Za-z0-9._-]*)")
WHEEL = re.compile(r"/([A-Za-z0-9_.]+)-([^-/]+)-(?:[^-/]+-)?[^-/]+-[^-/]+-[^-/]+\.whl")


def normalised(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_packaging() -> tuple[Any, Any, str | None]:
    """`packaging.requirements` and where it comes from; None if there is neither it nor pip."""
    for name in ("packaging", "pip._vendor.packaging"):
        try:
            module = importlib.import_module(name + ".requirements")
            version = importlib.import_module(name + ".version")
            return module, version, name
        except Exception:  # noqa: BLE001  # a damaged copy is as good as none
            continue
    return None, None, None


def find_toml() -> Any:
    """A TOML reader: the standard library's from Python 3.11, else pip's."""
    for name in ("tomllib", "tomli", "pip._vendor.tomli"):
        try:
            return importlib.import_module(name)
        except Exception:  # noqa: BLE001
            continue
    return None


def who_am_i() -> dict[str, Any]:
    """The interpreter. -I excludes ~/.local, which ComfyUI sees unless its venv is isolated."""
    own = any(p.startswith(sys.base_prefix) and p.endswith("-packages") for p in sys.path)
    user = [site.getusersitepackages()] if sys.prefix == sys.base_prefix or own else []
    stdlib = os.path.dirname(os.__file__)
    managed = os.path.exists(os.path.join(stdlib, "EXTERNALLY-MANAGED"))
    info = getattr(sys.implementation, "version", sys.version_info)
    libc = os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else None
    return {
        "version": platform.python_version(),
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "path": sys.path + user,
        "stdlib": stdlib,
        "tag": sys.implementation.cache_tag or "",
        "libc": libc or "",
        "managed": sys.prefix == sys.base_prefix and managed,
        "markers": {
            "os_name": os.name,
            "sys_platform": sys.platform,
            "platform_machine": platform.machine(),
            "platform_system": platform.system(),
            "platform_release": platform.release(),
            "platform_version": platform.version(),
            "platform_python_implementation": platform.python_implementation(),
            "python_version": ".".join(map(str, sys.version_info[:2])),
            "python_full_version": platform.python_version(),
            "implementation_name": sys.implementation.name,
            "implementation_version": ".".join(map(str, tuple(info)[:3])),
        },
    }


class Installed:
    """The distributions on a path; the first folder that has one counts, as for imports."""

    def __init__(self, path: Sequence[str], stdlib: str) -> None:
        folders = [
            p
            for p in dict.fromkeys(path)
            if os.path.isabs(p)
            and (not (p + "/").startswith(stdlib + "/") or p.endswith("-packages"))
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            listed = list(pool.map(self._records_in, folders))
            records = [record for _, found in listed for record in found]
            self.cut = len(records) > MOST_PACKAGES
            records = records[:MOST_PACKAGES]
            self.all = [one for one in pool.map(self._read, records) if one is not None]
        self.by_name: dict[str, dict[str, Any]] = {}
        for one in self.all:
            first = self.by_name.setdefault(one["name"], one)
            if first["folder"] == one["folder"]:  # two records, if an upgrade was interrupted
                first["versions"].append(one["version"])
        self.folders = [f for i, f in enumerate(folders) if listed[i][0]]

    @staticmethod
    def _records_in(folder: str) -> tuple[bool, list[tuple[str, str]]]:
        """(is the folder not empty, its records); pip prefixes `~` to what it is removing, or
        failed to."""
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return False, []
        records = [
            (folder, name)
            for name in names
            if name.endswith((".dist-info", ".egg-info")) and not name.startswith(("~", "."))
        ]
        return bool(names), records

    @staticmethod
    def _read(record: tuple[str, str]) -> dict[str, Any] | None:
        folder, name = record
        found = importlib.metadata.Distribution.at(os.path.join(folder, name))
        try:
            text = found.read_text("METADATA") or found.read_text("PKG-INFO")
            text = text or found.read_text("") or ""
        except (OSError, UnicodeError):
            text = ""
        head = HeaderParser().parsestr(text.partition("\n\n")[0])
        called = head.get("Name") or re.split(r"-\d|\.(?:dist|egg)-info$", name)[0]
        if not called:
            return None
        return {
            "name": normalised(called.strip()),
            "version": (head.get("Version") or "").strip() or None,
            "versions": [],
            "folder": folder,
            "requires": head.get_all("Requires-Dist") or [],
            "extras": head.get_all("Provides-Extra") or [],
            "record": os.path.join(folder, name),
        }


class Judge:
    """Requirements against what is installed. `alike` are names with the same modules, `modules` a
    distribution's modules if not its own name."""

    def __init__(
        self,
        installed: Installed,
        alike: Mapping[str, Sequence[str]],
        modules: Mapping[str, str],
    ) -> None:
        self._requirements, self._versions, self.judged_with = find_packaging()
        self._installed = installed
        self._alike = alike
        self._modules = modules

    def line(self, line: str) -> dict[str, Any]:
        """One line of a file as a verdict."""
        try:
            if self._requirements is None:
                return verdict(line, "unjudged")
            return self._of_line(line)
        except Exception:  # noqa: BLE001  # strange lines, strange versions of `packaging`
            return verdict(line, "unread")

    def requires(self, one: Mapping[str, Any]) -> list[list[str]]:
        """What an installed distribution needs, as [name, specifiers, state]; no extras."""
        found = []
        for line in one["requires"] if self._requirements else []:
            try:
                wanted = self._requirements.Requirement(line)
                if wanted.url or not self._applies(wanted, ""):
                    continue
                state = self._state(wanted, MOST_DEPTH)[0]
                found.append([normalised(wanted.name), str(wanted.specifier), state])
            except Exception:  # noqa: BLE001
                continue
        return found

    def _of_line(self, line: str) -> dict[str, Any]:
        if len(line) > MOST_LINE or "${" in line:
            return verdict(line, "unread")
        address, _, marker = line.partition(" ;")
        if ADDRESS.fullmatch(address.strip()):
            return self._of_address(line, address.strip(), marker.strip())
        wanted = self._requirements.Requirement(line)
        if not self._applies(wanted, ""):
            return verdict(line, "skipped", normalised(wanted.name))
        state, version = self._state(wanted, 0)
        wanted.marker = None
        return verdict(line, state, normalised(wanted.name), version, str(wanted))

    def _of_address(self, line: str, address: str, marker: str) -> dict[str, Any]:
        """`git+https://…#egg=name` and a wheel's address name a package; others are identified only
        by an installed one's recorded origin (PEP 610)."""
        if marker and not self._applies(self._requirements.Requirement("x ; " + marker), ""):
            return verdict(line, "skipped")
        found = EGG.search(address) or WHEEL.search(address)
        name = normalised(found.group(1)) if found else ""
        one = self._installed.by_name.get(name) if name else self._from(address)
        if one is None:
            return verdict(line, "missing", name, None, address)
        return verdict(line, "met", one["name"], one["version"], address)

    def _from(self, address: str) -> dict[str, Any] | None:
        plain = address.partition("#")[0].partition("+")[2] or address
        for one in self._installed.by_name.values():
            try:
                with open(os.path.join(one["record"], "direct_url.json")) as file:
                    url = json.load(file)["url"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if plain == url or plain.rpartition("@")[0] == url:
                return one
        return None

    def _applies(self, wanted: Any, extra: str) -> bool:
        return wanted.marker is None or bool(wanted.marker.evaluate({"extra": extra}))

    def _state(self, wanted: Any, depth: int) -> tuple[str, str | None]:
        name = normalised(wanted.name)
        one = self._installed.by_name.get(name)
        if one is None:
            others = [self._installed.by_name.get(n) for n in self._alike.get(name, ())]
            other = next((o for o in others if o is not None), None)
            if other is not None:
                return "met", other["version"]
            module = self._modules.get(name, name.replace("-", "_"))
            return ("untracked" if can_import(module) else "missing"), None
        if one["version"] is None:
            return "unread", None
        try:
            self._versions.Version(one["version"])
        except Exception:  # noqa: BLE001  # not a version of PEP 440: nothing can be said
            return "unread", one["version"]
        versions = [version for version in one["versions"] if version is not None]
        if not any(wanted.specifier.contains(each, prereleases=True) for each in versions):
            return "wrong", one["version"]
        whole = all(self._has_extra(one, extra, depth) for extra in wanted.extras)
        return ("met" if whole else "missing"), one["version"]

    def _has_extra(self, one: Mapping[str, Any], extra: str, depth: int) -> bool:
        """Is everything installed that an extra of an installed distribution adds?"""
        if depth >= MOST_DEPTH:
            return True
        for line in one["requires"]:
            if "extra" not in line:
                continue
            needed = self._requirements.Requirement(line)
            if not self._applies(needed, extra) or self._applies(needed, ""):
                continue
            if self._state(needed, depth + 1)[0] in ("missing", "wrong"):
                return False
        return True


def verdict(
    line: str, state: str, name: str = "", version: str | None = None, text: str = ""
) -> dict[str, Any]:
    """A verdict for requirements.py; `text` is the requirement for an installer."""
    return {"line": line, "state": state, "name": name, "version": version, "text": text or line}


def can_import(module: str) -> bool:
    """Is there such a top-level module? A folder without code, left by an uninstalled package, does
    not count; one with code but no `__init__.py` does (comfy-aimdo)."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None or spec.origin is not None:
        return spec is not None
    return any(has_code(folder) for folder in spec.submodule_search_locations or ())


def has_code(folder: str) -> bool:
    """Does a folder have modules or packages?"""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(
        name.endswith((".py", ".so")) or os.path.isfile(os.path.join(folder, name, "__init__.py"))
        for name in names
    )


def lines_of(file: Mapping[str, Any]) -> list[str]:
    """A file's requirements; those of a pyproject.toml are its `[project] dependencies`."""
    if file.get("toml") is None:
        return list(file["lines"])
    toml = find_toml()
    try:
        found = toml.loads(file["toml"])["project"]["dependencies"]
        return [line for line in found if isinstance(line, str)]
    except Exception:  # noqa: BLE001  # not TOML, or no such table
        return []


def with_folders(path: list[str], before: str | None, after: str | None) -> list[str]:
    """A search path with a folder before all packages and one after them."""
    first = next((i for i, p in enumerate(path) if p.endswith("-packages")), len(path))
    ahead = [before] if before else []
    return path[:first] + ahead + path[first:] + ([after] if after else [])


def main() -> None:
    """Answer the request on stdin; see requirements.py."""
    asked = json.load(sys.stdin)
    me = who_am_i()
    me["path"] = with_folders(me["path"], asked.get("before"), asked.get("after"))
    sys.path[:] = me["path"]
    installed = Installed(me["path"], me["stdlib"])
    judge = Judge(installed, asked.get("alike", {}), asked.get("modules", {}))
    files = [
        [judge.line(line) for line in lines_of(file)[:MOST_REQUIREMENTS]]
        for file in asked.get("files", [])
    ]
    keys = ("name", "version", "folder")
    me["packages"] = [{key: one[key] for key in keys} for one in installed.all]
    me["folders"] = installed.folders
    more = f"more than {MOST_PACKAGES} packages: not all were read"
    me["problems"] = [more] if installed.cut else []
    me["judged_with"] = judge.judged_with
    me["verdicts"] = files
    me["absent"] = [name for name in asked.get("imports", []) if not can_import(name)]
    if asked.get("needs"):
        me["needs"] = {
            one["name"]: {
                "requires": judge.requires(one),
                "extra_lines": [line for line in one["requires"] if "extra" in line],
                "extras": one["extras"],
            }
            for one in installed.by_name.values()
        }
    print()
    print(json.dumps(me))


if __name__ == "__main__":
    main()
