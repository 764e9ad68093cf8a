"""A stand-in for torchvision in ComfyUI's environment, where no CPU workflow reaches the real one.

ComfyUI imports torchvision at module level in a few places; PyPI has no CPU build of it for
x86-64, and the CUDA build would pull in gigabytes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = '''"""A stand-in: torchvision is not installed in this demo environment.

Importing it works, using anything of it raises. Install the real torchvision to use nodes that
need it.
"""

import sys
import types

__version__ = "0.0.0+stand.in"


class _StandIn(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"torchvision is a stand-in here and has no {name}; install torchvision")


for _name in "transforms transforms.functional transforms.v2 ops io models utils".split():
    sys.modules[f"torchvision.{_name}"] = _StandIn(f"torchvision.{_name}")
transforms = sys.modules["torchvision.transforms"]
'''

_WHERE = (
    "import importlib.util as u, sysconfig; "
    "print('' if u.find_spec('torchvision') else sysconfig.get_path('purelib'))"
)


def add_torchvision_stand_in(python: Path) -> None:
    """Put the stand-in into the site-packages of `python`, unless torchvision is there."""
    where = subprocess.run(
        [
            *(str(python), "-I", "-c", _WHERE),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    if where:
        folder = Path(where) / "torchvision"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text(_SOURCE, encoding="utf-8")
