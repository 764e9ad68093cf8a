#!/usr/bin/env python3
"""Check a ComfyUI volume: the same checks as the worker's, on any machine with Python.

    git clone … && python3 scripts/check_volume.py [PATH]

Nothing has to be installed. Exit code 0: fit (there may be warnings); 1: errors; 2: wrong use.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # said before anything fails to parse
    sys.exit(f"check_volume.py needs Python 3.10 or newer; this is {sys.version.split()[0]}")

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from bootstrap.config import Settings
from bootstrap.core import log
from bootstrap.core.findings import findings_text
from bootstrap.doctor import Report, Scope, examine, report_json, report_text
from bootstrap.doctor.fix import apply_fixes, plan_fixes
from bootstrap.doctor.page import page
from scripts.progress import Progress
from scripts.stdout import show, wants_colour


def main(argv: list[str], env: Mapping[str, str] = os.environ) -> int:
    """Examine, and repair what is safe if asked to; the exit code."""
    arguments = _parser().parse_args(argv)
    given = {**env, "VOLUME_PATH": os.path.abspath(arguments.path)} if arguments.path else env
    settings, problems = Settings.from_env(given)
    if arguments.path and not os.path.isdir(arguments.path):
        _say(f"check_volume.py: {_no_folder(arguments.path)}")
        return 2
    report = _examine(settings, given, arguments)
    if arguments.fix:
        _fix(report)
        report = _examine(settings, given, arguments)
    report = Report((*problems, *report.findings), report.facts, report.at, report.seconds)
    if not _show(report, arguments):
        return 2
    return 1 if report.status == "error" else 0


def _no_folder(path: str) -> str:
    what = "is a file, not a folder" if os.path.exists(path) else "does not exist"
    return f"{path} {what}. On a Pod the volume is /workspace; without a path it is looked for."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_volume.py",
        description="Check a volume with ComfyUI and models, and this machine.",
        epilog="Exit code 0: fit (there may be warnings); 1: errors; 2: wrong use.",
    )
    parser.add_argument(
        "path", nargs="?", help="the volume (default: VOLUME_PATH, /runpod-volume, /workspace)"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--deep", action="store_true", help="also measure how fast the volume is")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    parser.add_argument("--quiet", action="store_true", help="only warnings and errors")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="repair what is safe: missing folders, our own broken links and stale partial files; "
        "never a model or a file of yours",
    )
    return parser


def _examine(settings: Settings, env: Mapping[str, str], arguments: argparse.Namespace) -> Report:
    with Progress("looking at the volume") as progress:
        return examine(settings, env, Scope(deep=arguments.deep, progress=progress.update))


def _fix(report: Report) -> None:
    """Show what will be repaired, repair it, say what came of it; all on stderr."""
    facts = report.facts
    repairs = plan_fixes(facts.layout, facts.volume) if facts.layout and facts.volume else []
    if not repairs:
        _say("Nothing can be repaired automatically.")
        return
    for repair in repairs:
        _say(f"will {repair.sentence}")
    _say(findings_text(apply_fixes(repairs)))


def _say(text: str) -> None:
    log.show(f"{text}\n", sys.stderr)


def _show(report: Report, arguments: argparse.Namespace) -> bool:
    """Print the report, and write the page; False when that could not be done."""
    data = report_json(report)
    if arguments.json:
        show(json.dumps(data, indent=2))
    else:
        show(report_text(report, colour=wants_colour(), quiet=arguments.quiet))
    if arguments.html:
        try:
            Path(arguments.html).write_text(page(data), "utf-8")
        except OSError as problem:
            _say(f"check_volume.py: {arguments.html}: {problem.strerror}")
            return False
    return True


if __name__ == "__main__":
    log.use_utf8()
    sys.exit(main(sys.argv[1:]))
