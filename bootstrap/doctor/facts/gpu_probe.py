"""Queries the NVIDIA driver; run as a child process, see `gpu.py`.

A call into a wedged driver can hang uninterruptibly, and a CUDA context stays in its process, so
this runs in its own process, `python -I -S gpu_probe.py [--touch]`, with only the standard library.
It writes one JSON object per line, before and after each step, so that the parent knows how far it
came. Signatures and constants: NVIDIA's nvml.h and cuda.h.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

MAX_DEVICES = 64
MAX_PROCESSES = 16
TOUCH_BYTES = 4096
TOUCH_VALUE = 0x5A

# nvml.h
_TEXT_BYTES = 96
_UNCORRECTED = 1
_VOLATILE = 0  # since the driver was loaded
_TEMPERATURE_GPU = 0
_THROTTLE_REASONS = {
    0x8: "hw_slowdown",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x4: "sw_power_cap",
}


class _NvmlMemory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _NvmlProcess(ctypes.Structure):
    """nvmlProcessInfo_t of the _v2 and _v3 calls (v1 lacks the last two)."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class DriverError(Exception):
    """A call that did not return 0, with its code."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned {code}")
        self.call = call
        self.code = code


class Library:
    """A shared library whose functions return 0 for success, as NVML's and CUDA's do."""

    def __init__(self, name: str) -> None:
        self._library = ctypes.CDLL(name)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises DriverError for a code other than 0, AttributeError for an unknown name."""
        tell(step=name)
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise DriverError(name, code)

    def text(self, name: str, *before: Any) -> str | None:
        """The text that a call writes into a buffer; None if it fails."""
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        if not self.tried(name, *before, buffer, ctypes.c_uint(_TEXT_BYTES)):
            return None
        return buffer.value.decode("utf-8", "replace")

    def number(self, name: str, *before: Any, kind: Any = ctypes.c_uint) -> int | None:
        """The integer of `kind` that a call writes; None if it fails."""
        value = kind()
        if not self.tried(name, *before, ctypes.byref(value)):
            return None
        return int(value.value)

    def tried(self, name: str, *arguments: Any) -> bool:
        """Whether the call exists and succeeded."""
        try:
            self.call(name, *arguments)
        except (DriverError, AttributeError):
            return False
        return True


def tell(**data: Any) -> None:
    """Write one line to the waiting parent, flushed."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


def ask_nvml() -> Iterator[dict[str, Any]]:
    """Yields names, memory, versions and health. Raises OSError (no library) or DriverError."""
    nvml = Library("libnvidia-ml.so.1")
    nvml.call("nvmlInit_v2")
    cuda = nvml.number("nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int)
    count = nvml.number("nvmlDeviceGetCount_v2") or 0
    yield {
        "driver_version": nvml.text("nvmlSystemGetDriverVersion"),
        "cuda_driver_version": _cuda_version(cuda),
    }
    yield {"devices": [_nvml_device(nvml, index) for index in range(min(count, MAX_DEVICES))]}


def _nvml_device(nvml: Library, index: int) -> dict[str, Any]:
    handle = ctypes.c_void_p()
    try:
        nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    except DriverError as problem:
        return {"index": index, "error_code": problem.code}
    memory = _NvmlMemory()
    known = nvml.tried("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    both = (ctypes.c_int * 2)()  # major, minor
    parts = (ctypes.byref(both, 0), ctypes.byref(both, ctypes.sizeof(ctypes.c_int)))
    capable = nvml.tried("nvmlDeviceGetCudaComputeCapability", handle, *parts)
    ecc = (ctypes.c_uint(_UNCORRECTED), ctypes.c_uint(_VOLATILE))
    bits = nvml.number("nvmlDeviceGetCurrentClocksThrottleReasons", handle, kind=ctypes.c_ulonglong)
    return {
        "index": index,
        "name": nvml.text("nvmlDeviceGetName", handle),
        "uuid": nvml.text("nvmlDeviceGetUUID", handle),
        "memory_total": int(memory.total) if known else None,
        "memory_free": int(memory.free) if known else None,
        "compute_capability": list(both) if capable else None,
        "ecc_uncorrected": nvml.number(
            "nvmlDeviceGetTotalEccErrors", handle, *ecc, kind=ctypes.c_ulonglong
        ),
        "throttle": [name for bit, name in _THROTTLE_REASONS.items() if (bits or 0) & bit],
        "temperature": nvml.number(
            "nvmlDeviceGetTemperature", handle, ctypes.c_uint(_TEMPERATURE_GPU)
        ),
        "processes": _nvml_processes(nvml, handle),
    }


def _nvml_processes(nvml: Library, handle: ctypes.c_void_p) -> list[dict[str, Any]]:
    """Processes with a compute context; in a container their ids are often the host's."""
    for version in ("_v3", "_v2"):
        name = "nvmlDeviceGetComputeRunningProcesses" + version
        count = ctypes.c_uint(MAX_PROCESSES)
        found = (_NvmlProcess * MAX_PROCESSES)()
        if nvml.tried(name, handle, ctypes.byref(count), found):
            # NVML_VALUE_NOT_AVAILABLE is all ones: no permission to see other processes' use
            return [
                {"pid": p.pid, "used": None if p.used >= 2**63 else int(p.used)}
                for p in found[: min(count.value, MAX_PROCESSES)]
            ]
    return []


def ask_cuda(touch: bool) -> Iterator[dict[str, Any]]:
    """CUDA's devices; with `touch`, whether the first one stores and returns bytes. Yields results
    as they come, so that a later failure keeps them. CUDA_VISIBLE_DEVICES is applied by the driver
    itself. Raises OSError (no library) or DriverError.
    """
    cuda = Library("libcuda.so.1")
    cuda.call("cuInit", ctypes.c_uint(0))
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.call("cuDriverGetVersion", ctypes.byref(version))
    yield {"cuda_driver_version": _cuda_version(version.value)}
    cuda.call("cuDeviceGetCount", ctypes.byref(count))
    devices = [_cuda_device(cuda, index) for index in range(min(count.value, MAX_DEVICES))]
    yield {"devices": devices}
    if touch and devices:
        _touch_first_device(cuda)
        yield {"touched": True}


def _cuda_device(cuda: Library, index: int) -> dict[str, Any]:
    device = ctypes.c_int()
    cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    raw = (ctypes.c_ubyte * 16)()
    known = cuda.tried("cuDeviceGetUuid", ctypes.byref(raw), device)
    name = ctypes.create_string_buffer(96)
    named = cuda.tried("cuDeviceGetName", name, ctypes.c_int(96), device)
    total = ctypes.c_size_t()
    sized = cuda.tried("cuDeviceTotalMem_v2", ctypes.byref(total), device)
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    numbers = []
    for attribute in (75, 76):
        value = ctypes.c_int()
        cuda.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        numbers.append(value.value)
    return {
        "uuid": _uuid_text(bytes(raw)) if known else None,
        "name": name.value.decode("utf-8", "replace") if named else None,
        "memory_total": int(total.value) if sized else None,
        "compute_capability": numbers,
    }


def _touch_first_device(cuda: Library) -> None:
    """Create a context, set 4 KB and read it back: a defective device fails here."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda.call("cuCtxSetCurrent", context)
    block = ctypes.c_ulonglong()
    cuda.call("cuMemAlloc_v2", ctypes.byref(block), ctypes.c_size_t(TOUCH_BYTES))
    value, size = ctypes.c_ubyte(TOUCH_VALUE), ctypes.c_size_t(TOUCH_BYTES)
    cuda.call("cuMemsetD8_v2", block, value, size)
    back = (ctypes.c_ubyte * TOUCH_BYTES)()
    cuda.call("cuMemcpyDtoH_v2", back, block, size)
    cuda.call("cuMemFree_v2", block)
    if bytes(back) != bytes([TOUCH_VALUE]) * TOUCH_BYTES:
        raise DriverError("compare", -1)


def _uuid_text(raw: bytes) -> str:
    """In NVML's form: GPU-8-4-4-4-12."""
    text = raw.hex()
    cuts = (0, 8, 12, 16, 20, 32)
    return "GPU-" + "-".join(text[a:b] for a, b in itertools.pairwise(cuts))


def _cuda_version(number: int | None) -> str | None:
    """12080 -> 12.8"""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _report(part: str, answers: Iterator[dict[str, Any]]) -> None:
    try:
        for known in answers:
            tell(part=part, **known)
    except OSError as problem:
        tell(part=part, missing=str(problem))
    except DriverError as problem:
        tell(part=part, failed=problem.call, code=problem.code)
    except AttributeError as problem:
        tell(part=part, failed=str(problem), code=-1)


def main(arguments: list[str]) -> int:
    """Query both libraries; failures are part of the output, so this returns 0."""
    _report("nvml", ask_nvml())
    _report("cuda", ask_cuda("--touch" in arguments))
    tell(done=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
