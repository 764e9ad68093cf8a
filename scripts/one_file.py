"""`make checker`: the checker as one file, for a Pod without a clone.

    curl -fsSL https://…/check_volume.py | python3 - /workspace

The file unpacks itself into a temporary folder and runs there, since the probes of the GPU and of
ComfyUI's Python are separate programs.
"""

from __future__ import annotations

import base64
import io
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ADDRESS = (
    "https://github.com/comfyui-volume-worker/comfyui-volume-worker"
    "/releases/latest/download/check_volume.py"
)
_SCRIPTS = ("__init__.py", "check_volume.py", "printing.py")
_HEAD = r'''#!/usr/bin/env python3
"""Checks a ComfyUI volume; --help says how. Nothing has to be installed, and nothing is left."""

import sys

if sys.version_info < (3, 10):
    version = sys.version.split()[0]
    sys.stderr.write("check_volume.py needs Python 3.10 or newer; this is " + version + "\n")
    sys.exit(2)

import base64
import io
import subprocess
import tempfile
import zipfile

# How this file was called is what its findings say to type.
RUN = """
import sys, shlex
folder, typed = sys.argv[1:3]
sys.path.insert(0, folder)
from scripts.check_volume import main
piped = "curl -fsSL {address} | python3 -"
command = piped if typed == "-" else "python3 " + shlex.quote(typed)
sys.exit(main(sys.argv[3:], command=command))
"""
PARTS = """
{parts}
"""


def main():
    with tempfile.TemporaryDirectory(prefix="check-volume-") as folder:
        zipfile.ZipFile(io.BytesIO(base64.b64decode(PARTS))).extractall(folder)
        program = [sys.executable, "-X", "utf8", "-B", "-c", RUN, folder]
        try:
            return subprocess.call([*program, *sys.argv])
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
'''


def write(place: Path) -> None:
    """Write the program to `place`. Raises OSError."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in _files():
            # Without a date: the same code gives the same file.
            name = zipfile.ZipInfo(file.relative_to(ROOT).as_posix())
            archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED)
    text = base64.b64encode(packed.getvalue()).decode()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(
        _HEAD.format(parts="\n".join(textwrap.wrap(text, 100)), address=_ADDRESS), "utf-8"
    )
    place.chmod(0o755)


def _files() -> Iterator[Path]:
    kinds = ("*.py", "*.html")
    yield from sorted(file for kind in kinds for file in (ROOT / "bootstrap").rglob(kind))
    yield from (ROOT / "scripts" / name for name in _SCRIPTS)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write(target)
    print(target)
