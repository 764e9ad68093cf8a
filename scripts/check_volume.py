#!/usr/bin/env python3
"""Check a ComfyUI volume: the same checks as the worker's, on any machine with Python.

    git clone … && python3 scripts/check_volume.py [PATH]

Nothing has to be installed. Exit code 0: fit (there may be warnings); 1: errors, or something that
could not be checked; 2: wrong use.
"""

# Without annotations from the future, so that an old Python reaches the message below.
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    version = sys.version.split()[0]
    sys.stderr.write("check_volume.py needs Python 3.10 or newer; this is " + version + "\n")
    sys.exit(2)

import argparse
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from bootstrap.config import Settings
from bootstrap.core import log
from bootstrap.core.files import is_system_folder
from bootstrap.core.terminal import (
    Parser,
    Style,
    as_typed,
    closing,
    findings_text,
    relative,
    style_of,
)
from bootstrap.core.text import printable, shell_quote
from bootstrap.doctor import Report, Scope, examine, of_volume, repairs_of, report_json, report_text
from bootstrap.doctor.fix import apply_fixes
from bootstrap.doctor.page import page
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from bootstrap.volume.locate import similar_folder, volume_around
from scripts.printing import ScanProgress, say, show

# The image's Python for ComfyUI, and where a worker gets its jobs.
_IMAGE, _JOBS = "/opt/comfyui", "RUNPOD_WEBHOOK_GET_JOB"
_MOST_MOVES = 50
_NAME_IT = "Name the folder where the volume is mounted, on a Pod /workspace."


def main(
    argv: list[str],
    env: Mapping[str, str] = os.environ,
    prog: str = "check_volume.py",
    command: str = "",
) -> int:
    """Check, and repair if requested; returns the exit code. `command` is how the program was
    called, if not as `prog`."""
    command = command or as_typed("doctor", prog)
    arguments = _parser(prog, command).parse_args(argv)
    given = {**env, "VOLUME_PATH": os.path.abspath(arguments.path)} if arguments.path else env
    refused = _refused(arguments.path or "", env.get("VOLUME_PATH", "").strip(), command)
    if refused:
        say(f"{prog}: {refused}")
        return 2
    settings, problems = Settings.from_env(given)
    report = _examine(settings, given, arguments)
    if (arguments.fix or arguments.dry_run) and _fix(report, arguments):
        report = _examine(settings, given, arguments)
    report = replace(report, findings=(*problems, *report.findings))
    if not _in_image(given):
        report = of_volume(report)
    if not _show(report, arguments, prog):
        return 2
    return 1 if report.status == "error" else 0


def _refused(typed: str, configured: str, command: str) -> str:
    """Why this path cannot be checked as a volume, and what to type instead; empty if it can. The
    report covers a configured but missing volume."""
    path = typed or configured
    place = Path(os.path.abspath(path))
    if not os.path.isabs(path) and not typed:
        return ""
    if is_system_folder(place) or is_system_folder(os.path.realpath(place)):
        return f"{printable(path)} is one of the system's own folders, not a volume. {_NAME_IT}"
    try:
        is_folder = stat.S_ISDIR(os.stat(place).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return _missing(path, place, command) if typed else ""
    except (OSError, ValueError):
        return ""  # the report says why
    volume = volume_around(place if is_folder else place.parent)
    if volume and (is_folder or typed):
        what = "only a part of" if is_folder else "a file on"
        why = f"{printable(path)} is {what} the volume at {printable(str(volume))}. Check that"
        return f"{why}:\n  {command} {shell_quote(str(volume))}"
    if is_folder or not typed:
        return ""
    return f"{printable(path)} is a file, not a folder. {_NAME_IT}"


def _missing(path: str, place: Path, command: str) -> str:
    """`workspace` is a typo for `/workspace`."""
    from_root = Path("/", path)
    guess = similar_folder(place)
    if guess is None and from_root != place:
        guess = from_root if from_root in USUAL_ROOTS else similar_folder(from_root)
    if guess is None:
        return f"{printable(path)} does not exist. {_NAME_IT}"
    suggested = f"{command} {shell_quote(str(guess))}"
    return f"{printable(path)} does not exist. Did you mean this?\n  {suggested}"


def _parser(prog: str = "check_volume.py", command: str = "") -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Check a volume with ComfyUI and models: what is wrong, and how to fix it.",
        epilog=closing(
            {
                "VOLUME_PATH": "the volume, if no path is given",
                "COMFYUI_PATH": "the folder of its ComfyUI, where there are several",
                "NO_COLOR": "no colours",
            },
            [f"{command} /workspace", f"{command} /workspace --fix --html report.html"],
            "exit codes:\n  0  fit (there may be warnings)\n"
            "  1  errors, or a part that could not be checked\n  2  wrong use",
        ),
    )
    parser.add_argument(
        "path", nargs="?", help="the volume (default: VOLUME_PATH, /runpod-volume, /workspace)"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--deep", action="store_true", help="also measure how fast the volume is")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page")
    parser.add_argument("-v", "--verbose", action="store_true", help="also show what is fine")
    parser.add_argument("--quiet", action="store_true", help="only warnings and errors")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="repair what is safe: misplaced models and those in misnamed folders are moved, links "
        "that name a mount point become relative, missing folders are created, broken links and "
        "stale partial files made by workers are removed. Nothing is overwritten; on a terminal it "
        "asks first",
    )
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what --fix would do")
    return parser


def _examine(settings: Settings, env: Mapping[str, str], arguments: argparse.Namespace) -> Report:
    with ScanProgress("looking at the volume") as progress:
        return examine(settings, env, Scope(deep=arguments.deep, progress=progress.update))


def _in_image(env: Mapping[str, str]) -> bool:
    """Is this a worker's container, whose Python and GPU jobs will use?"""
    return _JOBS in env or os.path.isdir(_IMAGE)


def _fix(report: Report, arguments: argparse.Namespace) -> bool:
    """Show the repairs, make them and report the result, all on stderr; True if done."""
    repairs, style = repairs_of(report), style_of(sys.stderr)
    root = str(report.facts.layout.root) if report.facts.layout else ""
    if not repairs:
        say("Nothing can be repaired automatically.")
    for repair in repairs:
        will = "Would" if arguments.dry_run else "Will"
        said = f"{will} {repair.sentence[:1].lower()}{repair.sentence[1:]}"
        said += ":" if repair.moves else "."
        say("\n".join(style.wrapped(relative(said, root), "", "  ")))
        _list_moves(repair.moves, root, style)
    if not repairs or arguments.dry_run or not (arguments.yes or _agreed()):
        return False
    for finding in apply_fixes(repairs):
        say(findings_text([finding], style, root))
        _list_moves(finding.details.get("moves", ()), root, style)
    return True


def _list_moves(moves: Sequence[str], root: str, style: Style) -> None:
    """What moves to where, a line each, by paths on the volume."""
    for line in moves[:_MOST_MOVES]:
        say("\n".join(style.wrapped(relative(line, root), "  ", "      ")))
    if len(moves) > _MOST_MOVES:
        say(f"  and {len(moves) - _MOST_MOVES:,} more")


def _agreed() -> bool:
    """Ask on a terminal; elsewhere --fix alone is consent."""
    if not sys.stderr.isatty():
        return True
    try:  # standard input may be this very program
        with open("/dev/tty", encoding="utf-8") as terminal:
            sys.stderr.write("Repair this? [y/N] ")
            sys.stderr.flush()
            return terminal.readline().strip().lower() in ("y", "yes")
    except (OSError, KeyboardInterrupt):
        return False


def _show(report: Report, arguments: argparse.Namespace, prog: str) -> bool:
    """Print the report, and write the page; False if that failed."""
    data = report_json(report)
    if arguments.json:
        show(json.dumps(data, indent=2))
    else:
        style = style_of(sys.stdout)
        show(report_text(report, style, quiet=arguments.quiet, verbose=arguments.verbose))
    if arguments.html:
        try:
            Path(arguments.html).write_text(page(data), "utf-8")
        except OSError as problem:
            say(f"{prog}: {arguments.html}: {problem.strerror}")
            return False
        if not arguments.quiet:
            say(f"Wrote {printable(arguments.html)}.")
    return True


if __name__ == "__main__":
    log.use_utf8()
    sys.exit(main(sys.argv[1:], command=f"python3 {shell_quote(sys.argv[0])}"))
