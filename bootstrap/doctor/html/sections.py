"""The machine's facts as a compact table, and the boot's stages as a waterfall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import floor, log10
from typing import Any

from bootstrap.core.text import counted
from bootstrap.doctor.html.text import items, mapping, mappings, number, plain, safe, seconds, size

_MOST_GPUS, _MOST_PROBLEMS, _MOST_TEXT = 8, 5, 160
_DISKS = (("root_disk", "Disk /"), ("temp", "Work folder"), ("shm", "Shared memory"))
MOST_STAGES = 40
_MOST_NAME, _MOST_OUTCOME, _MOST_NOTE = 60, 60, 120


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


def timeline_html(timeline: object) -> str:
    """The section, or nothing where no stage was recorded."""
    stages = sorted(mappings(timeline), key=lambda s: number(s.get("start")))
    if not stages:
        return ""
    total = max(number(s.get("start")) + number(s.get("seconds")) for s in stages) or 1.0
    rows = "".join(_row(stage, total) for stage in stages[:MOST_STAGES])
    more = len(stages) - MOST_STAGES
    note = f'<p class="note">{counted(more, "more stage")} not shown.</p>' if more > 0 else ""
    return (
        '<section class="card boot" aria-labelledby="boot"><div class="top">'
        f'<h2 id="boot">Boot</h2><p class="note">{seconds(total)} in all</p></div>'
        f"{_axis(total)}<ol>{rows}</ol>{note}</section>"
    )


def _row(stage: Mapping[str, Any], total: float) -> str:
    start, length = number(stage.get("start")), number(stage.get("seconds"))
    name, outcome = safe(stage.get("name"), _MOST_NAME), plain(stage.get("outcome"), _MOST_OUTCOME)
    good = outcome == "ok"
    kind, mark = ("ok", "✓") if good else ("error", "✗")
    said = "" if good else f' <span class="failed">{safe(outcome or "no outcome", 60)}</span>'
    title = f"from {seconds(start)} to {seconds(start + length)}{_more(stage)}"
    spoken = "ok" if good else "failed"
    return (
        f'<li><span class="stage"><span class="mark {kind}" role="img" aria-label="{spoken}">'
        f"{mark}</span> <bdi>{name}</bdi>{said}</span>"
        f'<span class="took">{seconds(length)}</span>'
        f'<svg class="bar" width="100%" height="14" aria-hidden="true"><title>{title}</title>'
        f'{_grid(total)}<rect class="{kind}" x="{100 * start / total:.2f}%" y="2" height="10" '
        f'rx="2" width="{max(100 * length / total, 0.4):.2f}%"/></svg></li>'
    )


def _more(stage: Mapping[str, Any]) -> str:
    """What it moved, and what else it says, for whoever points at the bar."""
    moved = size(stage.get("bytes")) if number(stage.get("bytes")) else ""
    return "".join(f"; {part}" for part in (moved, safe(stage.get("note"), _MOST_NOTE)) if part)


def _axis(total: float) -> str:
    """Times above the bars, as far to the right as they are late."""
    labels = "".join(
        f'<text x="{at:.2f}%" y="12" text-anchor="{_anchor(at)}">{value:g}{unit}</text>'
        for at, value, unit in _ticks(total)
    )
    return f'<svg class="axis" width="100%" height="16" aria-hidden="true">{labels}</svg>'


def _anchor(at: float) -> str:
    return "start" if at < 2 else "end" if at > 94 else "middle"


def _grid(total: float) -> str:
    return "".join(
        f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="14"/>' for at, _, _ in _ticks(total)
    )


def _ticks(total: float) -> Iterator[tuple[float, float, str]]:
    """Round times from 0 to `total`, four to eight: place in percent, number, unit."""
    exponent = floor(log10(total / 4))
    steps = [factor * 10.0**exponent for factor in (1, 2, 5, 10)]
    step = max((s for s in steps if total / s >= 3.9), default=steps[0])
    index = 0
    while index * step <= total * 1.0001 and index < 12:
        value = round(index * step, 6)
        yield 100 * value / total, value, " s"
        index += 1
