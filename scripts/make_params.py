"""Writes the first version of a workflow's parameters: `portrait.params.yaml` for `portrait.json`.

    python3 scripts/make_params.py /workspace/workflows/portrait.json

Prompts, seeds, sizes, steps and input files become parameters with the workflow's own values as
defaults. Rename, delete and describe them as you like; a file that is there is not replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bootstrap.core.arguments import Parser, closing
from handler.common.errors import JobError
from handler.request.params import SUFFIX, first_params
from handler.request.workflow import read_workflow

_HEAD = """# What may be sent with {{"workflow_name": "{name}", "params": {{…}}}}.
# docs/workflows.md tells all.
"""


def make_params(workflow: Path) -> Path:
    """Write the file beside `workflow`; its path. Raises JobError, OSError, and FileExistsError
    where there is one."""
    import yaml

    params = first_params(read_workflow(workflow.read_text("utf-8")))
    place = workflow.with_name(workflow.stem + SUFFIX)
    text = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
    with open(place, "x", encoding="utf-8") as file:
        file.write(_HEAD.format(name=workflow.stem) + text)
    return place


def _parser(prog: str) -> argparse.ArgumentParser:
    command = prog if " " in prog else f"python3 scripts/{prog}"
    parser = Parser(
        prog=prog,
        description="Write the first version of a workflow's parameters beside it.",
        epilog=closing(
            {},
            [f"{command} /workspace/workflows/portrait.json", f"{command} workflow_api.json"],
            "exit codes:\n  0  written\n  1  not written\n  2  wrong use",
        ),
    )
    parser.add_argument("workflow", type=Path, help="a workflow in API format")
    return parser


def main(argv: list[str], prog: str = "make_params.py") -> int:
    """Write it, and print where; the exit code."""
    workflow = _parser(prog).parse_args(argv).workflow
    try:
        print(make_params(workflow))
    except FileExistsError as problem:
        print(f"{problem.filename} is there already and is not replaced.", file=sys.stderr)
        return 1
    except (JobError, OSError, UnicodeError) as problem:
        print(f"{workflow}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
