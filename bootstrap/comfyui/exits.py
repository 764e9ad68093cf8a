"""Pure: why ComfyUI ended, from its exit code and the end of its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Match

from bootstrap.core.findings import Finding, error, host_error

CODES = {
    "comfyui.killed": "ComfyUI was killed, most often for memory",
    "comfyui.bad_flag": "ComfyUI refused its command line",
    "comfyui.module_missing": "A Python package that ComfyUI needs is not installed",
    "comfyui.front_end_missing": "ComfyUI wants its front end package",
    "comfyui.port_taken": "ComfyUI's port was taken",
    "comfyui.database": "ComfyUI could not open its database",
    "comfyui.model_paths_bad": "ComfyUI could not read extra_model_paths.yaml",
    "comfyui.assets": "ComfyUI could not start its assets",
    "comfyui.torch_without_gpu": "The torch in ComfyUI's Python has no CUDA",
    "comfyui.gpu_unusable": "The GPU or its driver failed when ComfyUI opened it",
    "comfyui.disk_full": "ComfyUI found no space on the device",
    "comfyui.prompt_thread_ended": "A node ended the thread that runs prompts",
    "comfyui.output_not_json": "A node reported something that is not JSON",
    "comfyui.exited": "ComfyUI ended for a reason the log does not name",
}
LOG_LINES_IN_DETAILS = 30
# Custom nodes log failures of their own on the way; the fatal one stands at the end.
_LINES_LOOKED_AT = 30
_SURVIVED = re.compile(r"Import times for custom nodes|^Cannot import .* module for custom nodes:")


@dataclass(frozen=True)
class Exit:
    """How a ComfyUI process ended: `code` as in `subprocess` (negative: the signal)."""

    code: int
    log: tuple[str, ...]
    python: Path
    seconds: float


Explain = Callable[[Exit, "Match[str]"], Finding]


def explain_exit(exit: Exit) -> Finding:
    """The finding that names the cause; `details` hold the exit code and the log's end."""
    finding = _by_signal(exit) or _by_log(exit) or _unnamed(exit)
    details = {"exit_code": exit.code, "log": list(exit.log[-LOG_LINES_IN_DETAILS:])}
    return Finding(
        finding.code,
        finding.severity,
        finding.message,
        finding.fix,
        finding.host_fault,
        {**finding.details, **details},
    )


def _by_signal(exit: Exit) -> Finding | None:
    number = -exit.code if exit.code < 0 else exit.code - 128
    if number == signal.SIGKILL:
        return error(
            "comfyui.killed",
            "ComfyUI was killed (SIGKILL); without somebody doing so by hand that is the kernel, "
            "because the container's memory limit was reached.",
            "Choose a worker with more memory, use smaller or fp8 models, or add --disable-mmap / "
            "--cache-none to COMFYUI_ARGS.",
        )
    if exit.code < 0:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return error(
            "comfyui.exited",
            f"ComfyUI was ended by {name} after {exit.seconds:.0f} s.",
            "Read the end of its log; a crash in native code (SIGSEGV, SIGABRT, SIGILL) is most "
            "often a package built for another machine or another torch.",
        )
    return None


def _by_log(exit: Exit) -> Finding | None:
    """The reason that stands last in the log: what was survived stands before what was not."""
    text = "\n".join(_lines_that_count(exit.log))
    found = [(match, explain) for pattern, explain in _REASONS if (match := _last(pattern, text))]
    if not found:
        return None
    match, explain = max(found, key=lambda reason: text.count("\n", 0, reason[0].start()))
    return explain(exit, match)


def _lines_that_count(log: Sequence[str]) -> Sequence[str]:
    """The log's end, without what custom nodes said while they were imported and survived."""
    last = log[-_LINES_LOOKED_AT:]
    survived = [i for i, line in enumerate(last) if _SURVIVED.search(line)]
    return last[survived[-1] + 1 :] if survived else last


def _last(pattern: str, text: str) -> Match[str] | None:
    """The last match: an import that fails early may be caught, the one at the end was not."""
    found = list(re.finditer(pattern, text, re.MULTILINE | re.IGNORECASE))
    return found[-1] if found else None


def _bad_flag(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.bad_flag",
        f"ComfyUI refused its command line: {match[1]}.",
        "Correct COMFYUI_ARGS; `python main.py --help` in the ComfyUI folder lists what it knows.",
    )


def _module_missing(exit: Exit, match: Match[str]) -> Finding:
    module = match[1]
    return error(
        "comfyui.module_missing",
        f"ComfyUI's Python ({exit.python}) has no module {module}.",
        "With PACKAGES=install (the default) a worker adds what ComfyUI's requirements.txt asks "
        "for; the findings on packages say what it could not add. By hand: "
        f"{exit.python} -m pip install {module.split('.')[0]}",
        module=module,
    )


def _front_end_missing(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.front_end_missing",
        "ComfyUI wants the package comfyui-frontend-package, and knows no --front-end-root.",
        f"{exit.python} -m pip install comfyui-frontend-package",
    )


def _port_taken(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.port_taken",
        "ComfyUI's port was taken by another process while it started.",
        "Remove COMFYUI_PORT, so that a free port is chosen; start no other ComfyUI in the image.",
    )


def _database(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.database",
        f"ComfyUI could not open its database: {match[0].strip()}.",
        "Set WORK_DIR to a folder on local disk; a ComfyUI without --database-url keeps its "
        "database in its own folder, where two workers collide: update it.",
    )


def _model_paths(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.model_paths_bad",
        f"ComfyUI could not read {match[1] or 'extra_model_paths'}.yaml in its folder.",
        "Correct that file, or remove it: the worker links models/ by itself.",
    )


# ComfyUI 0.38, main.py and app/database: what it says before it ends with code 1.
_ASSETS = {
    "in_use": "another process has its database open",
    "locked": "its database is locked",
    "newer_revision": "its database was made by a newer ComfyUI",
    "path_blocked": "something else is where its database belongs",
    "not_writable": "its database cannot be written",
    "corrupt": "its database is damaged",
    "missing_packages": "packages that it needs are not installed (alembic, SQLAlchemy, blake3)",
    "unsupported_url": "the address of its database is not one it knows",
}


def _assets(exit: Exit, match: Match[str]) -> Finding:
    kind = match[1]
    fix = "Remove --enable-assets from COMFYUI_ARGS: a worker has no use for them."
    if kind == "missing_packages":
        fix += f" Or install them: {exit.python} -m pip install alembic SQLAlchemy blake3"
    return error(
        "comfyui.assets",
        f"ComfyUI could not start its assets ({kind}): {_ASSETS.get(kind, 'see its log')}.",
        fix,
        kind=kind,
    )


def _torch_without_gpu(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.torch_without_gpu",
        f"The torch in {exit.python} is built without CUDA.",
        f"Install a CUDA build of torch into {exit.python}, or set COMFYUI_ARGS=--cpu to run "
        "without a GPU.",
    )


def _gpu_unusable(exit: Exit, match: Match[str]) -> Finding:
    return host_error(
        "comfyui.gpu_unusable",
        f"ComfyUI could not use the GPU: {match[0].strip()}.",
        "Nothing to do where Runpod takes another machine. If every machine says so: choose one "
        "with a newer driver (Edit Endpoint → Allowed CUDA Versions), or COMFYUI_ARGS=--cpu.",
    )


def _prompt_thread_ended(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.prompt_thread_ended",
        f"A node ended ComfyUI's prompt thread ({match[1].strip()}), after which no job would run.",
        "A custom node calls exit() or raises SystemExit: the traceback in the details names its "
        "file. Mend or remove it.",
    )


def _output_not_json(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.output_not_json",
        f"A node reported a result that is not JSON ({match[1].strip()}), of which ComfyUI ended.",
        "Mend or remove the custom node: what it returns under `ui` may hold texts, numbers, "
        "lists and objects only.",
    )


def _disk_full(exit: Exit, match: Match[str]) -> Finding:
    return error(
        "comfyui.disk_full",
        f"ComfyUI found no space: {match[0].strip()}.",
        "Give the endpoint a larger container disk, or free space on the volume.",
    )


def _unnamed(exit: Exit) -> Finding:
    last = next((line for line in reversed(exit.log) if line.strip()), "nothing")
    return error(
        "comfyui.exited",
        f"ComfyUI ended with code {exit.code} after {exit.seconds:.0f} s; it last said: "
        f"{last.strip()[:300]}",
        "Read the end of its log in the details; custom nodes can be ruled out with "
        "COMFYUI_ARGS=--disable-all-custom-nodes.",
    )


_GPU_FAILED = (
    r"^.*(?:No CUDA GPUs are available|Found no NVIDIA driver"
    r"|NVIDIA driver on your system is too old|CUDA driver initialization failed"
    r"|CUDA unknown error|CUDA error: ).*$"
)
# A traceback is written in pieces; what another thread logs meanwhile may stand between them.
_NOT_JSON = (
    r"(?:^|TypeError: )(Object of type \S+ is not JSON serializable"
    r"|keys must be str, int, float, bool or None.*)$"
)
# Where two match on the same line, the first names the cause.
_REASONS: Sequence[tuple[str, Explain]] = (
    (r"error: ((?:unrecognized arguments|argument|ambiguous option)[^\n]*)", _bad_flag),
    (
        _GPU_FAILED,
        _gpu_unusable,
    ),
    (r"Torch not compiled with CUDA enabled", _torch_without_gpu),
    (r"^ComfyUI's prompt thread ended: (.*)$", _prompt_thread_ended),
    (_NOT_JSON, _output_not_json),
    (r"No space left on device[^\n]*", _disk_full),
    (r"ASSETS_STARTUP_FAILED:\s*(\w+)", _assets),
    (r"(?:address already in use|Port \d+ is already in use)", _port_taken),
    (r"comfyui-frontend-package (?:is not installed|is missing)[^\n]*", _front_end_missing),
    (r"^ModuleNotFoundError: No module named '([^']+)'", _module_missing),
    (r"^.*(?:database is locked|unable to open database file|sqlite3?\.\w+Error).*$", _database),
    (r"(extra_model_paths|extra_paths)\b|load_extra_path_config", _model_paths),
)
