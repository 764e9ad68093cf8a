"""`make picture`: docs/images/report.svg, the checker's real output on a volume with four faults.

The volume is a copy of the demo's. The checker runs in its own terminal; its output is the picture,
except that the paths of the volume and of ComfyUI's Python are as in the image.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from demo.volume import ensure

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "report.svg"
COLUMNS = 100
COMMAND = "python3 check_volume.py /workspace"
# rich's frame, without the web font that it would load.
_FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, Menlo, Consolas, monospace; }}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#0d1117" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, 14)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def break_volume(volume: Path) -> None:
    """Break a volume in four common ways."""
    models = volume / "models"
    (models / "checkpoints").mkdir(parents=True)
    page = models / "checkpoints" / "flux1-dev-fp8.safetensors"
    page.write_text("<!DOCTYPE html><html><title>Log in</title></html>")
    (models / "lora").mkdir()
    (models / "lora" / "style.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (volume / "ComfyUI" / "nodes.py").unlink()
    header = b'{"w":{"dtype":"F16","shape":[4096,4096],"data_offsets":[0,33554432]}}'
    cut_short = len(header).to_bytes(8, "little") + header + bytes(1_000_000)
    (models / "checkpoints" / "sdxl.safetensors").write_bytes(cut_short)


def said_of(volume: Path, python: Path) -> str:
    """The checker's output about `volume` in a terminal, with colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    env = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "COMFYUI_PYTHON": str(python)}
    command = [sys.executable, str(ROOT / "scripts" / "check_volume.py"), str(volume)]
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        try:
            while block := os.read(ours, 65536):
                said += block
        except OSError:  # the other end of the terminal is closed: the checker has ended
            pass
    os.close(ours)
    text = said.decode().replace("\r\n", "\n").replace(str(volume), "/workspace")
    return text.replace(str(python), "/opt/comfyui/bin/python")


def drawn(said: str) -> str:
    """A terminal's coloured text as an SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    console.print(Text.from_ansi(said.strip("\n")))
    return console.export_svg(title="", code_format=_FRAME, unique_id="report")


def make() -> str:
    """The current picture."""
    demo = ensure()
    with tempfile.TemporaryDirectory() as folder:
        volume = demo.copy_to(Path(folder) / "volume")
        break_volume(volume)
        return drawn(said_of(volume, demo.python))


if __name__ == "__main__":
    PICTURE.write_text(make(), "utf-8")
