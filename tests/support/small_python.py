"""A Python that stands in for ComfyUI's: a venv with records of packages, some with a module."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bootstrap.environment.imports import hard_imports


class SmallPython:
    """A venv in `root` with a record of torch, the modules that any ComfyUI imports, and, unless
    turned off, `packaging`."""

    def __init__(self, root: Path, packaging: bool = True) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
        self.python = root / "bin" / "python"
        self.site = next((root / "lib").glob("python3*")) / "site-packages"
        if packaging:
            spec = importlib.util.find_spec("packaging")
            assert spec is not None and spec.origin is not None
            shutil.copytree(Path(spec.origin).parent, self.site / "packaging")
            self.record("packaging", "26.3")
        self.add("torch", "2.13.0+cpu")
        for each in hard_imports(None):
            if each.module != "torch":
                self.module(each.module)

    def add(self, name: str, version: str, requires: Sequence[str] = (), text: str = "") -> None:
        """Install a package: a module that holds its version, and a record."""
        self.module(name.replace("-", "_"), text or f"VERSION = {version!r}\n")
        self.record(name, version, requires)

    def module(self, name: str, text: str = "") -> None:
        """A module without a record."""
        (self.site / name).mkdir(exist_ok=True)
        (self.site / name / "__init__.py").write_text(text)

    def record(self, name: str, version: str, requires: Sequence[str] = ()) -> None:
        """A record without a module."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {each}" for each in requires]
        extras = re.findall(r"extra == '(\w+)'", "".join(requires))
        lines += [f"Provides-Extra: {each}" for each in extras]
        (folder / "METADATA").write_text("\n".join(lines) + "\n\nName: not-this\n")
