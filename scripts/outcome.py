"""A job's outcome: exit code, saved files, and output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.findings import Severity
from bootstrap.core.terminal import style_of
from bootstrap.core.text import pluralize
from scripts.diagnostics_text import diagnostics_text, findings_in
from scripts.endpoint import Job
from scripts.errors import DONE, FAILED, NOT_SAVED, ClientError
from scripts.printing import plain, say, say_error, say_wrapped, show
from scripts.saving import Saving, save


@dataclass(frozen=True)
class Ended:
    """How it ended; `problem` where it did not end well."""

    job: Job | None = None
    problem: ClientError | None = None


def report(
    ended: Ended, folder: Path, as_json: bool, html: Path | None = None, seconds: float = 0.0
) -> int:
    """Save results in `folder`, and diagnostics as a page in `html`; print the outcome; returns the
    exit code."""
    problem = ended.problem or _failure(ended.job)
    code = DONE if problem is None else problem.exit_code
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
        say_wrapped(f"note: {note}")
    if problem is not None:
        say_error(problem)
    if code in (DONE, NOT_SAVED) and not isinstance(diagnostics, dict):
        say(f"Done in {seconds:.1f} s, {_count(saving)}.")
    if as_json:
        show(json.dumps(_data(code, ended.job, problem, output)))
    elif isinstance(diagnostics, dict):
        show(diagnostics_text(diagnostics, style_of(sys.stdout)))
    else:
        for line in (*saving.texts, *map(str, saving.saved)):
            show(plain(line))
    return code


def _failure(job: Job | None) -> ClientError | None:
    """Why a job came to nothing; None where it has a result."""
    if job is None:
        return None
    output = job.output if isinstance(job.output, dict) else {}
    if job.status != "COMPLETED":
        given = {name: text for name, text in output.items() if isinstance(text, str)}
        hint, details = given.get("fix", ""), output.get("details")
        more = details if isinstance(details, dict) else {}
        said = (job.error.removesuffix(hint) if hint else job.error).rstrip()
        if not said:
            said = f"The job ended as {job.status}, without a reason."
            return ClientError("client.no_reason", said, hint)
        trace, docs = more.get("traceback"), given.get("docs", "")
        problems = more.get("problems")
        return ClientError(
            given.get("error_code", ""), said, hint, traceback=trace, docs=docs, problems=problems
        )
    if job.output is None:
        return ClientError(
            "client.no_output",
            "The job is COMPLETED but has no output: Runpod drops a reply over its limit.",
            "Lower MAX_REPLY_MB at the endpoint, or let results go to a bucket.",
        )
    return None


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
    """Files that are only on the volume, if no warning says so."""
    warned = "\n".join(_warnings(output))
    for name, path in saving.elsewhere:
        if path not in warned:
            yield f"{name} is on the volume at {path}"


def _count(saving: Saving) -> str:
    found = [pluralize(len(saving.saved), "file")] if saving.saved else []
    if saving.elsewhere:
        found.append(f"{pluralize(len(saving.elsewhere), 'file')} on the volume")
    return ", ".join(found) or "no files"


def _data(code: int, job: Job | None, problem: ClientError | None, output: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"exit_code": code, "id": job.id if job else None}
    data["status"] = job.status if job else None
    if problem is not None:
        data["error"] = str(problem)
    if output is not None:
        data["output"] = output
    return data
