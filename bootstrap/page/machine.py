"""The machine's facts as a compact table: what a person asks first when a job fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bootstrap.core.text import counted
from bootstrap.page.text import items, mapping, mappings, number, plain, safe, size

_MOST_GPUS, _MOST_PROBLEMS, _MOST_TEXT = 8, 5, 160
_DISKS = (("root_disk", "Disk /"), ("temp", "Work folder"), ("shm", "Shared memory"))


def machine_html(facts: object) -> str:
    """The section, or nothing where the machine was not looked at."""
    machine = mapping(facts)
    rows = "".join(
        f'<tr><th scope="row">{safe(name, 40)}</th><td>{safe(value, 200)}</td></tr>'
        for name, value in _rows(machine)
        if value
    )
    if not rows:
        return ""
    return (
        '<section class="card machine" aria-labelledby="facts"><div class="top">'
        f'<h2 id="facts">This machine</h2></div><table><tbody>{rows}</tbody></table></section>'
    )


def _rows(machine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    gpu = mapping(machine.get("gpu"))
    yield from _gpus(gpu)
    yield "Driver", _driver(gpu)
    yield "Memory", _memory(mapping(machine.get("memory")))
    yield "CPU", _cpu(mapping(machine.get("cpu")))
    for key, name in _DISKS:
        yield name, _disk(mapping(machine.get(key)))
    yield "Open files", _limits(items(machine.get("open_files")))
    yield "torch", _torch(mapping(machine.get("torch")))
    yield "Python", plain(machine.get("python"), _MOST_TEXT)
    kernel = (plain(machine.get(key), _MOST_TEXT) for key in ("kernel", "architecture"))
    yield "Kernel", ", ".join(part for part in kernel if part)
    for problem in items(machine.get("problems"))[:_MOST_PROBLEMS]:
        yield "Not known", plain(problem, _MOST_TEXT)


def _gpus(gpu: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    devices = mappings(gpu.get("devices"))
    if gpu and not devices:
        yield "GPU", "none"
    for device in devices[:_MOST_GPUS]:
        yield "GPU", _device(device)
    if len(devices) > _MOST_GPUS:
        yield "GPU", counted(len(devices) - _MOST_GPUS, "more GPU")


def _device(device: Mapping[str, Any]) -> str:
    parts = [plain(device.get("name"), 80) or "unnamed"]
    if device.get("memory_total") is not None:
        parts.append(_room(device.get("memory_free"), device.get("memory_total")))
    if device.get("temperature") is not None:
        parts.append(f"{number(device.get('temperature')):.0f} °C")
    if throttle := items(device.get("throttle")):
        parts.append("slowed by " + ", ".join(plain(t, 40) for t in throttle[:4]))
    if device.get("visible") is False:
        parts.append("hidden from CUDA")
    return ", ".join(parts)


def _driver(gpu: Mapping[str, Any]) -> str:
    driver, cuda = plain(gpu.get("driver_version"), 40), plain(gpu.get("cuda_driver_version"), 40)
    return ", ".join(part for part in (driver, f"CUDA up to {cuda}" if cuda else "") if part)


def _memory(memory: Mapping[str, Any]) -> str:
    if not memory:
        return ""
    source = plain(memory.get("source"), 40)
    room = _room(memory.get("available"), memory.get("limit"))
    return room + (f" ({source})" if source else "")


def _cpu(cpu: Mapping[str, Any]) -> str:
    if not cpu:
        return ""
    usable, quota = number(cpu.get("usable")), number(cpu.get("quota"))
    cores = min(quota, usable) if quota and usable else quota or usable
    host = number(cpu.get("host"))
    return f"{cores:g} cores" + (f" of the host's {host:g}" if host > cores else "")


def _disk(disk: Mapping[str, Any]) -> str:
    if not disk:
        return ""
    path = plain(disk.get("path"), 80)
    read_only = ", read-only" if disk.get("read_only") is True else ""
    return _room(disk.get("free"), disk.get("total")) + read_only + (f" ({path})" if path else "")


def _limits(limits: Any) -> str:
    shown = ["no limit" if limit is None else f"{number(limit):,.0f}" for limit in limits[:2]]
    return f"{shown[0]} (at most {shown[1]})" if len(shown) == 2 else ""


def _torch(torch: Mapping[str, Any]) -> str:
    version, cuda = plain(torch.get("version"), 60), plain(torch.get("cuda"), 40)
    return ", ".join(part for part in (version, f"for CUDA {cuda}" if cuda else "") if part)


def _room(free: object, total: object) -> str:
    return f"{size(free)} free of {size(total)}"
