"""A ComfyUI of a few lines, for tests of starting and stopping: it does what its `BEHAVIOUR` says.

`write` puts it into a folder as `main.py`; it runs as a real process on a real port.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bootstrap.comfyui import ComfyUI, Launch
from bootstrap.comfyui.launch import Folders, flags_in

HELP = "usage: main.py [-h] [--listen [IP]] [--port PORT] [--output-directory DIR] [--cpu]"
_MAIN = """
import http.server, json, os, signal, socket, subprocess, sys, threading, time

behaviour = os.environ.get("BEHAVIOUR", "")
if "--help" in sys.argv:
    print({help!r})
    sys.exit()
port = int(sys.argv[sys.argv.index("--port") + 1])


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"system": {{"argv": sys.argv}}}}).encode()
        found = 401 if behaviour == "login" else 200
        self.send_response(found if self.path == "/system_stats" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve():
    print("Starting server", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()


print("arguments", *sys.argv[1:], flush=True)
{behaviours}
serve()
"""
_BEHAVIOURS = r"""
if behaviour.startswith("exit "):
    _, code, *said = behaviour.split(" ", 2)
    print(*said, flush=True)
    os._exit(int(code))
if behaviour == "hang":
    time.sleep(60)
while behaviour == "waiting" and not os.path.exists("go-on"):
    time.sleep(0.02)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "family":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if behaviour == "progress":
    sys.stdout.write("10%\r50%\r100%\n" + "@" * 70000 + "\n")
    sys.stdout.flush()
    os.write(1, b"\xff bytes\n")
if behaviour == "unfinished":
    print("Traceback (most recent call last):\n  File a", flush=True)
    time.sleep(60)
if behaviour == "accept only":
    listener = socket.create_server(("127.0.0.1", port))
    time.sleep(60)
if behaviour == "compute only":
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        pass
"""


def write(folder: Path, work: Path, behaviour: str = "", port: int = 0) -> ComfyUI:
    """A fake ComfyUI in `folder`, not yet started, that writes below `work`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(_MAIN.format(help=HELP, behaviours=_BEHAVIOURS))
    folders = Folders(
        input=work / "input",
        output=work / "output",
        user=work / "user",
        temp_parent=work,
        front_end=work / "front-end",
        database=f"sqlite:///{work / 'comfyui.db'}",
    )
    env = {**os.environ, "BEHAVIOUR": behaviour, "PYTHONUNBUFFERED": "1"}
    return ComfyUI(
        Launch(Path(sys.executable), folder, folders, flags_in(HELP), ("--cpu",), env, port)
    )


def let_go(comfyui: ComfyUI) -> None:
    """One that is `waiting` goes on."""
    (comfyui.launch.comfyui / "go-on").touch()


def behaving(behaviour: str) -> pytest.MarkDecorator:
    """For tests whose fixture `comfyui` writes one with this behaviour."""
    return pytest.mark.parametrize("comfyui", [behaviour], indirect=True)
