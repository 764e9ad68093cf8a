"""Download speed against `aria2c -x16 -s16`, from a server that caps each connection.

    python -m benchmarks.download_speed [--gigabytes 2] [--cap 20] [--runs 3]

They take turns to fetch the same file, each in its own process, from a local server that gives each
connection 20 MB/s. Ours hashes, checks, flushes and writes a receipt; aria2c does none of that, so
it also runs with `--checksum` for comparison. Prints seconds, the ratio of speeds (aria2c's time
over ours), and the client's CPU seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "model.safetensors"
_SLICE = 256 * 1024
OURS = """
import sys
from pathlib import Path
from tests.support.provisioning import bring, spec, options
result = bring(Path(sys.argv[2]), spec(sys.argv[1]), options=options(connections=16, stall=30))
print(result.receipt.sha256 if result.good else result.problem.message)
"""


@dataclass(frozen=True)
class Run:
    """One client's run: wall-clock and CPU seconds, peak memory in MB."""

    seconds: float
    cpu: float
    peak_mb: float


def make_model(path: Path, size: int) -> None:
    """Write a safetensors file of about `size` bytes; its tensor is a hole, so this is instant."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": entry}).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def serve(listener: socket.socket, path: Path, bytes_per_second: float) -> None:
    """Answer GETs, with or without ranges, until killed; each connection has a speed limit."""
    size = path.stat().st_size
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arguments = (connection, path, size, bytes_per_second)
        threading.Thread(target=_converse, args=arguments, daemon=True).start()


def _converse(connection: socket.socket, path: Path, size: int, speed: float) -> None:
    with connection, open(path, "rb") as file, connection.makefile("rb") as requests:
        try:
            while line := requests.readline():
                first, end, ranged = 0, size, False
                while (header := requests.readline()) not in (b"\r\n", b""):
                    if header.lower().startswith(b"range: bytes="):
                        low, _, high = header.split(b"=")[1].strip().partition(b"-")
                        first, end, ranged = int(low), int(high) + 1 if high else size, True
                status = b"206 Partial Content" if ranged else b"200 OK"
                connection.sendall(
                    b"HTTP/1.1 %s\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n"
                    b'ETag: "one"\r\nAccept-Ranges: bytes\r\n\r\n'
                    % (status, end - first, first, end - 1, size)
                )
                if line.startswith(b"GET"):
                    _send(connection, file.fileno(), first, end, speed)
        except OSError:
            pass


def _send(connection: socket.socket, source: int, first: int, end: int, speed: float) -> None:
    started, position = time.monotonic(), first
    while position < end:
        position += os.sendfile(connection.fileno(), source, position, min(_SLICE, end - position))
        ahead = (position - first) / speed - (time.monotonic() - started)
        if ahead > 0:
            time.sleep(ahead)


def measure(command: Sequence[str], result: Path, size: int) -> Run:
    """Run a client, check that the whole file is there, remove it."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout is not None else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if not result.is_file() or result.stat().st_size != size:
        raise SystemExit(f"{command[0]} failed: {output[-500:]}")
    shutil.rmtree(result.parent)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main(argv: Sequence[str]) -> int:
    """Print the figures; 0 if ours reaches 0.95 of aria2c's speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--cap", type=float, default=20.0, help="MB/s of each connection")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where files go (default: temp folder)")
    arguments = parser.parse_args(argv)
    aria2c = shutil.which("aria2c")
    if aria2c is None:
        print("aria2c is missing. Debian, Ubuntu: apt-get install aria2; macOS: brew install aria2")
        return 2
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return _compare(Path(folder), aria2c, arguments)


def _compare(folder: Path, aria2c: str, arguments: argparse.Namespace) -> int:
    source = folder / "source.safetensors"
    make_model(source, int(arguments.gigabytes * 1e9))
    size = source.stat().st_size
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(listener, source, arguments.cap * 1e6), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/{NAME}"
    theirs = [aria2c, "-x16", "-s16", "-k1M", "--file-allocation=none", "-q"]
    theirs += ["-d", str(folder / "aria2"), "-o", NAME]
    sha256 = subprocess.run(
        ["sha256sum", str(source)], capture_output=True, text=True, check=True
    ).stdout[:64]
    clients: dict[str, tuple[list[str], Path]] = {
        "aria2c": ([*theirs, url], folder / "aria2" / NAME),
        "aria2c --checksum": (
            [*theirs, f"--checksum=sha-256={sha256}", url],
            folder / "aria2" / NAME,
        ),
        "ours": (
            [sys.executable, "-c", OURS, url, str(folder / "ours")],
            folder / "ours" / "loras" / "m.safetensors",
        ),
    }
    runs: dict[str, list[Run]] = {name: [] for name in clients}
    try:
        for _ in range(arguments.runs):
            for name, (command, result) in clients.items():
                runs[name].append(measure(command, result, size))
    finally:
        server.terminate()
    return _report(runs, size)


def _report(runs: dict[str, list[Run]], size: int) -> int:
    print(f"{size / 1e9:.2f} GB, median of {len(runs['ours'])} runs")
    medians = {name: statistics.median(r.seconds for r in rs) for name, rs in runs.items()}
    for name, of_client in runs.items():
        cpu = statistics.median(run.cpu for run in of_client)
        peak = max(run.peak_mb for run in of_client)
        speed = size / medians[name] / 1e6
        print(
            f"{name:18} {medians[name]:6.2f} s  {speed:6.1f} MB/s  "
            f"cpu {cpu:5.2f} s  peak {peak:5.0f} MB"
        )
    ratio = medians["aria2c"] / medians["ours"]
    print(f"speed relative to aria2c: {ratio:.3f} (target: ≥ 0.95)")
    hashed = medians["aria2c --checksum"] / medians["ours"]
    print(f"speed relative to aria2c --checksum: {hashed:.3f}")
    return 0 if ratio >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
