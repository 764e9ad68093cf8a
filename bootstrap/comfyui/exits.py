"""Pure: why ComfyUI ended, from its exit code and the end of its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from re import Match

from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, Severity

CODES = {
    "comfyui.killed": "ComfyUI was killed, most often because memory ran out",
    "comfyui.bad_flag": "ComfyUI rejected its command line",
    "comfyui.module_missing": "A Python package that ComfyUI needs is not installed",
    "comfyui.front_end_missing": "ComfyUI does not start without its front-end package",
    "comfyui.port_taken": "ComfyUI's port was already in use",
    "comfyui.database": "ComfyUI could not open its database",
    "comfyui.model_paths_bad": "ComfyUI could not read `extra_model_paths.yaml`",
    "comfyui.assets": "ComfyUI could not start its asset database",
    "comfyui.torch_without_gpu": "The torch in ComfyUI's Python was built without CUDA",
    "comfyui.gpu_unusable": "The GPU or its driver failed when ComfyUI opened it",
    "comfyui.no_gpu_code": "A package in ComfyUI's Python has no code for this GPU",
    "comfyui.path_unusable": "A file or folder that ComfyUI needs is missing or cannot be opened",
    "comfyui.disk_full": "ComfyUI ran out of disk space",
    "comfyui.prompt_thread_ended": "A node ended ComfyUI's thread that runs prompts",
    "comfyui.output_not_json": "A node returned something that JSON cannot represent",
    "comfyui.exited": "ComfyUI exited for a reason that its log does not give",
}
LOG_LINES_IN_DETAILS = 30
# As torch, onnxruntime, attention kernels and CUDA's own libraries report it.
NO_GPU_CODE = re.compile(
    r"no kernel image is available|cudaErrorNoKernelImageForDevice"
    r"|(?:CUDA error: |CUDA failure \d{1,4}: )(?:invalid device function|named symbol not found)"
    r"|only supports Ampere GPUs or newer"
    r"|Unsupported CUDA architecture|unsupported gpu architecture"
    r"|Value 'sm_\d{2,3}a?' is not defined for option",
    re.IGNORECASE,
)
NO_GPU_CODE_FIX = (
    "Install a build of that package for this GPU into {python}: torch, or what a custom node "
    "brings (onnxruntime-gpu, xformers, sageattention; the traceback in the details names it). "
    "Or choose a GPU type that it was built for."
)
# Custom nodes log their own failures on the way; the fatal one is at the end.
_LINES_LOOKED_AT = 30
_SURVIVED = re.compile("Import times for custom nodes| module for custom nodes:")


@dataclass(frozen=True)
class Exit:
    """How a ComfyUI process ended: `code` as in `subprocess` (negative: the signal)."""

    code: int
    log: tuple[str, ...]
    python: Path
    seconds: float


@dataclass(frozen=True)
class StartFault(Finding):
    """Why ComfyUI ended, or did not answer in time; another start may succeed. `port_taken`: on
    another port."""

    port_taken: bool = False


@dataclass(frozen=True)
class _Reason:
    """A cause as it appears in the log. In `message` and `fix`, {line} is the match, {0} its group
    and {top} that up to the first dot, {python} the interpreter; `detail` names the group for
    programs.
    """

    code: str
    pattern: re.Pattern[str]
    message: str
    fix: str
    detail: str = ""
    host_fault: bool = False
    port_taken: bool = False

    def fault(self, exit: Exit, match: Match[str]) -> StartFault:
        """The fault for a match in the log of `exit`."""
        group = (match[1] if match.re.groups else "").strip()
        given = {"line": match[0].strip(), "top": group.partition(".")[0], "python": exit.python}
        return StartFault(
            self.code,
            Severity.ERROR,
            self.message.format(group, **given),
            self.fix.format(group, **given),
            self.host_fault,
            {self.detail: group} if self.detail else {},
            self.port_taken,
        )


def explain_exit(exit: Exit) -> StartFault:
    """The fault that explains the exit; `details` have the exit code and the end of the log."""
    finding = _by_signal(exit) or _by_log(exit) or _unnamed(exit)
    details = {"exit_code": exit.code, "log": list(exit.log[-LOG_LINES_IN_DETAILS:])}
    return replace(finding, details={**finding.details, **details})


def with_cause(finding: Finding, noticed: Iterable[Finding]) -> Finding:
    """The exit's error `finding`, with a check's message and fix if one has found the cause: these
    are more exact. `details` name its code."""
    if finding.severity is not Severity.ERROR:
        return finding
    path = str(finding.details.get("path") or "")
    for cause in noticed:
        if cause.severity.rank < Severity.WARNING.rank:
            continue
        if cause.code in _NOTICED_AS.get(finding.code, ()) or (path and _is_about(cause, path)):
            return replace(
                finding,
                message=f"{finding.message} {cause.message}",
                fix=cause.fix or finding.fix,
                details={**finding.details, "cause": cause.code},
            )
    return finding


def _is_about(cause: Finding, path: str) -> bool:
    """Does it name the path, or a folder or link on the way to it?"""
    named = cause.details.get("paths")
    listed = [str(one).rstrip("/") for one in named] if isinstance(named, list) else []
    return path in cause.message or any(contains(one, path) for one in listed if one)


def _by_signal(exit: Exit) -> StartFault | None:
    number = -exit.code if exit.code < 0 else exit.code - 128
    if number == signal.SIGKILL:
        return StartFault(
            "comfyui.killed",
            Severity.ERROR,
            "ComfyUI was killed (SIGKILL), probably by the kernel, "
            "because the container's memory limit was reached.",
            "Choose a worker with more memory, use smaller or fp8 models, or add --disable-mmap / "
            "--cache-none to COMFYUI_ARGS.",
        )
    if exit.code < 0:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return StartFault(
            "comfyui.exited",
            Severity.ERROR,
            f"ComfyUI was ended by {name} after {exit.seconds:.0f} s.",
            "Read the end of its log; a crash in native code (SIGSEGV, SIGABRT, SIGILL) is "
            "usually from a package built for another machine or another torch.",
        )
    return None


def _by_log(exit: Exit) -> StartFault | None:
    """The last reason in the log: what ComfyUI survived comes before what ended it."""
    text = "\n".join(_lines_that_count(exit.log))
    found = [(match, reason) for reason in _REASONS if (match := _last(reason.pattern, text))]
    if not found:
        return None
    match, reason = max(found, key=lambda pair: text.count("\n", 0, pair[0].start()))
    return reason.fault(exit, match)


def _lines_that_count(log: Sequence[str]) -> Sequence[str]:
    """The end of the log, without output of custom nodes whose import ComfyUI survived."""
    last = log[-_LINES_LOOKED_AT:]
    survived = [i for i, line in enumerate(last) if _SURVIVED.search(line)]
    return last[survived[-1] + 1 :] if survived else last


def _last(pattern: re.Pattern[str], text: str) -> Match[str] | None:
    """The last match: an early failed import may have been caught, the last one was not."""
    found = list(pattern.finditer(text))
    return found[-1] if found else None


def _unnamed(exit: Exit) -> StartFault:
    last = next((line for line in reversed(exit.log) if line.strip()), "nothing")
    return StartFault(
        "comfyui.exited",
        Severity.ERROR,
        f"ComfyUI ended with code {exit.code} after {exit.seconds:.0f} s; it last said: "
        f"{last.strip()[:300]}",
        "Read the end of its log in the details; to rule out custom nodes, set "
        "COMFYUI_ARGS=--disable-all-custom-nodes.",
    )


# Where two match on the same line, the first names the cause.
_FLAGS = re.MULTILINE | re.IGNORECASE
_REASONS: Sequence[_Reason] = (
    _Reason(
        "comfyui.bad_flag",
        re.compile(r"error: ((?:unrecognized arguments|argument|ambiguous option)[^\n]*)", _FLAGS),
        "ComfyUI refused its command line: {0}.",
        "Correct COMFYUI_ARGS; `python main.py --help` in the ComfyUI folder lists its flags.",
    ),
    _Reason(
        "comfyui.no_gpu_code",
        re.compile(
            rf"^.*(?:{NO_GPU_CODE.pattern}).*$",
            _FLAGS,
        ),
        "A package in {python} has no code for this GPU: {line}.",
        NO_GPU_CODE_FIX,
    ),
    _Reason(
        "comfyui.gpu_unusable",
        re.compile(
            r"^.*(?:No CUDA GPUs are available|Found no NVIDIA driver"
            r"|NVIDIA driver on your system is too old|CUDA driver initialization failed"
            r"|CUDA unknown error|CUDA error: ).*$",
            _FLAGS,
        ),
        "ComfyUI could not use the GPU: {line}.",
        "Nothing to do if Runpod uses another machine. If every machine says so: choose one "
        "with a newer driver (Edit Endpoint → Allowed CUDA Versions), or COMFYUI_ARGS=--cpu.",
        host_fault=True,
    ),
    _Reason(
        "comfyui.torch_without_gpu",
        re.compile(r"Torch not compiled with CUDA enabled", _FLAGS),
        "The torch in {python} is built without CUDA.",
        "Install a CUDA build of torch into {python}, or set COMFYUI_ARGS=--cpu to run without a "
        "GPU.",
    ),
    _Reason(
        "comfyui.prompt_thread_ended",
        re.compile(r"^ComfyUI's prompt thread ended: (.*)$", _FLAGS),
        "A node ended ComfyUI's prompt thread ({0}), after which no job would run.",
        "A custom node calls exit() or raises SystemExit: the traceback in the details names its "
        "file. Fix or remove it.",
    ),
    # A traceback is written in pieces; another thread's log lines may be in between.
    _Reason(
        "comfyui.output_not_json",
        re.compile(
            r"(?:^|TypeError: )(Object of type \S+ is not JSON serializable"
            r"|keys must be str, int, float, bool or None.*)$",
            _FLAGS,
        ),
        "A node reported a result that is not JSON ({0}), which ended ComfyUI.",
        "Fix or remove the custom node: what it returns under `ui` may hold strings, numbers, "
        "lists and objects only.",
    ),
    _Reason(
        "comfyui.disk_full",
        re.compile(r"No space left on device[^\n]*", _FLAGS),
        "ComfyUI found no space: {line}.",
        "Give the endpoint a larger container disk, or free space on the volume.",
    ),
    # A starting worker then tries other ports (readiness.py); they were taken each time.
    _Reason(
        "comfyui.port_taken",
        re.compile(r"(?:address already in use|Port \d+ is already in use)", _FLAGS),
        "ComfyUI's port was taken by another process while it started.",
        "Start nothing else in this container that listens on 127.0.0.1, or set COMFYUI_PORT to a "
        "port that nothing else uses (0: any free one).",
        port_taken=True,
    ),
    _Reason(
        "comfyui.front_end_missing",
        re.compile(r"comfyui-frontend-package (?:is not installed|is missing)[^\n]*", _FLAGS),
        "ComfyUI requires the package comfyui-frontend-package, and has no --front-end-root.",
        "`{python} -m pip install comfyui-frontend-package`",
    ),
    _Reason(
        "comfyui.module_missing",
        re.compile(r"^ModuleNotFoundError: No module named '([^']+)'", _FLAGS),
        "ComfyUI's Python ({python}) has no module {0}.",
        "With PACKAGES=install (the default) a worker adds what ComfyUI's requirements.txt asks "
        "for; the findings on packages say what it could not add. By hand: "
        "`{python} -m pip install {top}`",
        detail="module",
    ),
    _Reason(
        "comfyui.database",
        re.compile(
            r"^.*(?:database is locked|unable to open database file|sqlite3?\.\w+Error).*$", _FLAGS
        ),
        "ComfyUI could not open its database: {line}.",
        "Set WORK_DIR to a folder on local disk; a ComfyUI without --database-url keeps its "
        "database in its own folder, where two workers collide: update it.",
    ),
    _Reason(
        "comfyui.model_paths_bad",
        re.compile(r"extra_model_paths|extra_paths|load_extra_path_config", _FLAGS),
        "ComfyUI could not read extra_model_paths.yaml, or extra_paths.yaml, in its folder.",
        "Correct that file, or remove it: the worker links models/ by itself.",
    ),
    _Reason(
        "comfyui.path_unusable",
        re.compile(
            r"^(?:FileNotFound|NotADirectory|IsADirectory|Permission|OS)Error: \[Errno \d+\] "
            r"[^:\n]*: '([^'\n]+)'.*$",
            _FLAGS,
        ),
        "ComfyUI ended because of {0} ({line}).",
        "Put that file or folder where ComfyUI looks for it and let it be read, or correct what "
        "names it: a link, extra_model_paths.yaml, COMFYUI_ARGS; the traceback in the details says "
        "where ComfyUI asked for it.",
        detail="path",
    ),
    _Reason(
        "comfyui.assets",
        re.compile(r"ASSETS_STARTUP_FAILED:\s*(\w+)", _FLAGS),
        "ComfyUI could not start its assets ({0}).",
        "Remove --enable-assets from COMFYUI_ARGS: a worker does not need them. (in_use, locked, "
        "newer_revision, path_blocked, not_writable, corrupt: its database; missing_packages: "
        "`{python} -m pip install alembic SQLAlchemy blake3`.)",
        detail="kind",
    ),
)
# An exit's code -> codes of checks that may have found its cause before.
_NOTICED_AS: Mapping[str, tuple[str, ...]] = {
    "comfyui.no_gpu_code": ("gpu.torch_too_old", "gpu.torch_too_new"),
    "comfyui.torch_without_gpu": ("gpu.torch_without_cuda",),
    "comfyui.disk_full": ("volume.full", "volume.inodes_gone"),
    "comfyui.model_paths_bad": (
        *("volume.paths_tabs", "volume.paths_other_mount", "volume.paths_missing"),
    ),
}
