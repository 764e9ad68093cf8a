"""Puts a package set on ComfyUI's path: a sitecustomize.py in a folder that PYTHONPATH names.

PYTHONPATH itself would stand ahead of the standard library, which no package may hide.
"""

from __future__ import annotations

from pathlib import Path

from bootstrap.environment.loading import Loading
from bootstrap.environment.store import AFTER, BEFORE

_HOOK = '''"""Puts packages on ComfyUI's path; a worker writes it at each start."""
import importlib.machinery
import importlib.util
import os
import site
import sys
import time

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]


def _add(folder, at):
    known = list(sys.path)
    site.addsitedir(folder)
    sys.path[:] = known[:at] + [p for p in sys.path if p not in known] + known[at:]


class _Late:
    """Lets an import of a package wait that is still being unpacked."""

    def find_spec(self, name, path=None, target=None):
        if path is None and name in {late!r}:
            while self in sys.meta_path and not os.path.exists({arrived!r}):
                time.sleep(0.005)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.invalidate_caches()
        return None


# Other interpreters that ComfyUI starts inherit PYTHONPATH, and their packages are their own.
if sys.prefix == {prefix!r}:
    _own = [i for i, path in enumerate(sys.path) if path.endswith("-packages")]
    _add({after!r}, len(sys.path))
    _add({before!r}, _own[0] if _own else len(sys.path))
    if {late!r} and not os.path.exists({arrived!r}):
        sys.meta_path.insert(0, _Late())
# The interpreter's own file of this name, which this one hid.
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
'''


def write_hook(work: Path, prefix: str, loading: Loading | None = None) -> Path:
    """What PYTHONPATH must be. The rest of a set that is being loaded comes meanwhile."""
    path = work / "packages-path"
    path.mkdir(exist_ok=True)
    folder = work / "packages"
    arrived = path / "arrived"
    late = sorted({*loading.late, "pkg_resources"}) if loading and loading.late else []
    text = _HOOK.format(
        prefix=prefix,
        before=str(folder / BEFORE),
        after=str(folder / AFTER),
        late=late,
        arrived=str(arrived),
    )
    (path / "sitecustomize.py").write_text(text, encoding="utf-8")
    if loading is not None:
        loading.finish_beside(arrived)
    return path
