"""A stand-in for torchvision, which has no CPU build on PyPI for x86-64.

ComfyUI imports it at module level for code that our CPU workflows do not reach, so importing it
must work, and using it must fail with the reason.
"""

from __future__ import annotations

from pathlib import Path

TORCHVISION = '''\
"""Not torchvision: a stand-in made for the demo of comfyui-volume-worker.

Importing it and its submodules works; using anything in them raises. Install the real torchvision
into this environment to run what needs it.
"""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.0.0+stand.in"


class _Absent:
    def __init__(self, name):
        self._name = name

    def _fail(self, *args, **kwargs):
        raise NotImplementedError(
            f"{self._name} was used, but this torchvision is a stand-in without code, made for "
            "the demo of comfyui-volume-worker; install the real torchvision to use it"
        )

    __call__ = _fail
    __mro_entries__ = _fail

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self._fail()


def _absent_in(module):
    def absent(attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Absent(f"{module}.{attribute}")

    return absent


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any submodule exists."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith(__name__ + "."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        module.__getattr__ = _absent_in(module.__name__)


__getattr__ = _absent_in(__name__)
sys.meta_path.append(_Finder())
'''


def add_torchvision(site_packages: Path) -> None:
    """Write the stand-in, unless torchvision is already there."""
    package = site_packages / "torchvision"
    if not package.exists():
        package.mkdir()
        (package / "__init__.py").write_text(TORCHVISION, encoding="utf-8")
