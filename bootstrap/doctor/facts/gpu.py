"""Queries GPUs through the driver: without torch, without leaving a context, never hanging.

`gpu_probe.py` does it in a child process with a time limit. A child that hangs or dies is itself a
fact. NVIDIA only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# How long to wait for a killed child; one in an uninterruptible call does not end.
KILL_SECONDS = 0.5
# The child must find libraries and see the same devices; it gets no secrets.
_PASSED = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR")
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_")
# A healthy driver answers in 0.1 to 0.6 s. Without persistence mode the first call after idle time
# loads the driver's state for every GPU of the host: seconds with eight.
PROBE_TIMEOUT = 10.0


_PROBE = Path(__file__).with_name("gpu_probe.py")


@dataclass(frozen=True)
class ProbeRun:
    """The lines the child wrote, whether it had to be killed, its exit status, seconds taken."""

    lines: tuple[dict[str, Any], ...]
    silent: bool
    status: int | None
    seconds: float


def run_probe(env: Mapping[str, str], touch: bool, timeout: float) -> ProbeRun:
    """Run the probe for at most `timeout` seconds. Raises OSError if no process can be started."""
    passed = {k: v for k, v in env.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    command = [sys.executable, "-I", "-S", str(_PROBE), *(["--touch"] if touch else [])]
    started = time.monotonic()
    with _answer_file() as answer:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env=passed,
            start_new_session=True,
        )
        silent = _wait_or_kill(child, timeout)
        seconds = time.monotonic() - started
        answer.seek(0)
        return ProbeRun(_lines(answer.read(1 << 20)), silent, child.returncode, round(seconds, 3))


def _answer_file() -> IO[bytes]:
    """The child's output file. A pipe could fill up, and reading it could hang with the child."""
    try:
        return os.fdopen(os.memfd_create("gpu-probe"), "w+b")
    except OSError:
        return tempfile.TemporaryFile()


def _wait_or_kill(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether the child had to be killed. One that survives SIGKILL is abandoned."""
    try:
        child.wait(timeout)
        return False
    except subprocess.TimeoutExpired:
        child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_SECONDS)
    return True


def _lines(answer: bytes) -> tuple[dict[str, Any], ...]:
    found = []
    for line in answer.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a child killed while writing
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)


@dataclass(frozen=True)
class GpuProcess:
    """A process with a context on the GPU; its id is often the host's. `used` in bytes."""

    pid: int
    used: int | None


@dataclass(frozen=True)
class GpuDevice:
    """One GPU. Memory in bytes, temperature in °C; unknown values are None.

    `visible` means that CUDA programs here can use it (CUDA_VISIBLE_DEVICES). `ecc_uncorrected`
    counts since the driver was loaded. `throttle` lists what limits the clock now. `error_code` is
    NVML's, if it did not even return a handle.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None
    compute_capability: tuple[int, int] | None = None
    ecc_uncorrected: int | None = None
    throttle: tuple[str, ...] = ()
    temperature: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    visible: bool = True
    error_code: int | None = None


@dataclass(frozen=True)
class DriverPart:
    """The answer of one of the driver's libraries. `missing` is the loader's message; `failed` the
    call that failed, with its `code` (nvmlReturn_t or CUresult).
    """

    missing: str | None = None
    failed: str | None = None
    code: int | None = None
    answered: bool = False


@dataclass(frozen=True)
class GpuFacts:
    """The driver's answers. `nvml` and `cuda` are per library; `touched` is True if the first
    visible device stored and returned bytes, False if that failed, None if not tried. For a stopped
    probe `silent_in` is the call in which it hung, for one that died `died` says how.
    `device_files` are the existing /dev/nvidia*; `seconds` is the duration.
    """

    device_files: tuple[str, ...] = ()
    devices: tuple[GpuDevice, ...] = ()
    driver_version: str | None = None
    cuda_driver_version: str | None = None
    nvml: DriverPart = DriverPart()
    cuda: DriverPart = DriverPart()
    touched: bool | None = None
    silent_in: str | None = None
    died: str | None = None
    seconds: float = 0.0
    timeout: float = PROBE_TIMEOUT

    @property
    def visible(self) -> tuple[GpuDevice, ...]:
        """The GPUs that CUDA programs here can use."""
        return tuple(d for d in self.devices if d.visible)


def gather_gpu(
    env: Mapping[str, str],
    root: Path = Path("/"),
    touch: bool = True,
    timeout: float = PROBE_TIMEOUT,
) -> GpuFacts:
    """Query NVML and CUDA in a child process, for at most `timeout` seconds. `touch` lets it create
    a context and use 4 KB on the first device; not while a job runs, since a context takes hundreds
    of MB of a possibly full GPU. Raises OSError if no process can be started.
    """
    files = tuple(sorted(str(p.name) for p in (root / "dev").glob("nvidia*")))
    run = run_probe(env, touch, timeout)
    return _understand(run, files, touch, timeout, env)


def _understand(
    run: ProbeRun, files: tuple[str, ...], touch: bool, timeout: float, env: Mapping[str, str]
) -> GpuFacts:
    nvml, cuda = _merged(run.lines, "nvml"), _merged(run.lines, "cuda")
    steps = [line["step"] for line in run.lines if "step" in line]
    done = any(line.get("done") for line in run.lines)
    died = None if run.silent or done else f"exit status {run.status}"
    touched: bool | None = bool(cuda.get("touched")) if touch and cuda.get("devices") else None
    return GpuFacts(
        device_files=files,
        devices=_devices(nvml, cuda, env.get("CUDA_VISIBLE_DEVICES")),
        driver_version=nvml.get("driver_version"),
        cuda_driver_version=cuda.get("cuda_driver_version") or nvml.get("cuda_driver_version"),
        nvml=_part(nvml),
        cuda=_part(cuda),
        touched=touched,
        silent_in=(steps[-1] if steps else "start") if run.silent else None,
        died=f"{died} in {steps[-1] if steps else 'start'}" if died else None,
        seconds=run.seconds,
        timeout=timeout,
    )


def _merged(lines: tuple[dict[str, Any], ...], part: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for line in lines:
        if line.get("part") == part:
            merged.update(line)
    return merged


def _part(said: dict[str, Any]) -> DriverPart:
    return DriverPart(
        missing=said.get("missing"),
        failed=said.get("failed"),
        code=said.get("code"),
        answered=bool(said) and "missing" not in said and "failed" not in said,
    )


def _devices(
    nvml: dict[str, Any], cuda: dict[str, Any], allowed: str | None
) -> tuple[GpuDevice, ...]:
    """NVML's devices, marked by CUDA's list; CUDA's own if NVML returned none."""
    listed = cuda.get("devices")
    if not nvml.get("devices"):
        return tuple(_device({"index": i, **d}, True) for i, d in enumerate(listed or ()))
    uuids = None if listed is None else {d["uuid"] for d in listed}
    return tuple(
        _device(d, d.get("uuid") in uuids if uuids is not None else _allowed(d, allowed))
        for d in nvml["devices"]
    )


def _allowed(device: dict[str, Any], visible: str | None) -> bool:
    """CUDA_VISIBLE_DEVICES parsed here, in case CUDA itself failed before: indices or UUID
    prefixes, up to the first invalid one (CUDA C Programming Guide)."""
    if visible is None:
        return True
    for item in (part.strip() for part in visible.split(",")):
        if not (item.isdigit() or item.startswith(("GPU-", "MIG-"))):
            return False
        if item == str(device["index"]) or str(device.get("uuid")).startswith(item):
            return True
    return False


def _device(said: dict[str, Any], visible: bool) -> GpuDevice:
    capability = said.get("compute_capability")
    return GpuDevice(
        index=said["index"],
        name=said.get("name"),
        uuid=said.get("uuid"),
        memory_total=said.get("memory_total"),
        memory_free=said.get("memory_free"),
        compute_capability=(capability[0], capability[1]) if capability else None,
        ecc_uncorrected=said.get("ecc_uncorrected"),
        throttle=tuple(said.get("throttle", ())),
        temperature=said.get("temperature"),
        processes=tuple(GpuProcess(p["pid"], p["used"]) for p in said.get("processes", ())),
        visible=visible,
        error_code=said.get("error_code"),
    )
