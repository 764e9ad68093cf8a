"""What came of a job: its exit code, what is saved, what is said where."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.findings import Severity
from bootstrap.core.terminal import style_of
from bootstrap.core.text import counted
from scripts.diagnostics_text import diagnostics_text, findings_in
from scripts.endpoint import Job
from scripts.saving import Saving, save
from scripts.stdout import show
from scripts.watching import plain

DONE, FAILED, USAGE, UNREACHABLE, TIMEOUT, NOT_SAVED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
EXIT_CODES = """exit codes:
  0    completed, and everything is saved (--diagnostics: no errors found)
  1    the job failed, or was cancelled elsewhere (--diagnostics: errors found)
  2    an argument, a file or the key cannot be used; nothing was sent
  3    the endpoint could not be reached, or refused
  4    not done within --timeout; the job was cancelled
  5    completed, but a result could not be saved
  130  stopped by Ctrl-C; the job was cancelled"""


@dataclass(frozen=True)
class Ended:
    """How it ended; `problem` is a sentence where it did not end well."""

    exit_code: int
    job: Job | None = None
    problem: str = ""


def report(
    ended: Ended, folder: Path, as_json: bool, html: Path | None = None, seconds: float = 0.0
) -> int:
    """Save results in `folder`, and diagnostics as a page in `html`; print what there is to say;
    the final exit code."""
    code, problem = _judged(ended)
    output = ended.job.output if ended.job else None
    saving = Saving()
    if code == DONE:
        output, saving = save(output, folder)
        code = NOT_SAVED if saving.problems else DONE
    diagnostics = output.get("diagnostics") if isinstance(output, dict) else None
    if code == DONE and isinstance(diagnostics, dict):
        found = findings_in(diagnostics)
        code = FAILED if any(f.severity is Severity.ERROR for f in found) else DONE
        if html is not None and not _written(diagnostics, html, saving):
            code = NOT_SAVED
    for note in (*_warnings(output), *_elsewhere(saving, output), *saving.problems):
        _say(f"note: {note}")
    for line in _error_lines(problem, output):
        _say(line)
    if code in (DONE, NOT_SAVED) and not isinstance(diagnostics, dict):
        print(f"Done in {seconds:.1f} s, {_count(saving)}.", file=sys.stderr)
    if as_json:
        show(json.dumps(_data(code, ended.job, problem, output)))
    elif isinstance(diagnostics, dict):
        show(diagnostics_text(diagnostics, style_of(sys.stdout)))
    else:
        for line in (*saving.texts, *map(str, saving.saved)):
            show(plain(line))
    return code


def _say(line: str) -> None:
    for part in style_of(sys.stderr).wrapped(plain(line), indent="  "):
        print(part, file=sys.stderr)


def _error_lines(problem: str, output: Any) -> Iterator[str]:
    """`error[code]`, the sentence, what the node's Python said last, the way out."""
    if not problem:
        return
    failed = output if isinstance(output, dict) else {}
    code, fix = failed.get("error_code"), failed.get("fix")
    hint = fix if isinstance(fix, str) else ""
    sentence = problem.removesuffix(hint).rstrip() if hint else problem
    yield f"error[{code}]: {sentence}" if isinstance(code, str) and code else f"error: {sentence}"
    details = failed.get("details")
    last = _last_line(details.get("traceback") if isinstance(details, dict) else None)
    if last and last not in sentence:
        yield f"  {last}"
    if hint:
        yield f"hint: {hint}"
    if isinstance(failed.get("docs"), str):
        yield f"more: {failed['docs']}"


def _last_line(trace: Any) -> str:
    text = "\n".join(map(str, trace)) if isinstance(trace, list) else str(trace or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _judged(ended: Ended) -> tuple[int, str]:
    """The exit code so far, and what there is to say."""
    job = ended.job
    if job is not None and ended.exit_code == FAILED:
        return FAILED, job.error or f"The job ended as {job.status}, without a reason."
    if job is not None and ended.exit_code == DONE and job.output is None:
        return FAILED, (
            "The job is COMPLETED but has no output: Runpod drops a reply over its limit. "
            "Lower MAX_REPLY_MB at the endpoint, or let results go to a bucket."
        )
    return ended.exit_code, ended.problem


def _written(diagnostics: dict[str, Any], html: Path, saving: Saving) -> bool:
    from bootstrap.doctor.page import page

    try:
        html.write_text(page(diagnostics, "ComfyUI worker report"), "utf-8")
    except OSError as problem:
        saving.problems.append(f"{html} could not be written: {problem.strerror}")
        return False
    return True


def _warnings(output: Any) -> list[str]:
    found = (output.get("warnings") or output.get("errors")) if isinstance(output, dict) else None
    return [str(warning) for warning in found] if isinstance(found, list) else []


def _elsewhere(saving: Saving, output: Any) -> Iterator[str]:
    """What is on the volume alone, where no warning says so."""
    warned = "\n".join(_warnings(output))
    for name, path in saving.elsewhere:
        if path not in warned:
            yield f"{name} is on the volume at {path}"


def _count(saving: Saving) -> str:
    found = [counted(len(saving.saved), "file")] if saving.saved else []
    if saving.elsewhere:
        found.append(f"{counted(len(saving.elsewhere), 'file')} on the volume")
    return ", ".join(found) or "no files"


def _data(code: int, job: Job | None, problem: str, output: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"exit_code": code, "id": job.id if job else None}
    data["status"] = job.status if job else None
    if problem:
        data["error"] = problem
    if output is not None:
        data["output"] = output
    return data
