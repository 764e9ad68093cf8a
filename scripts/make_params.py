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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_params.py", description=__doc__.split("\n")[0])
    parser.add_argument("workflow", type=Path, help="a workflow in API format")
    return parser


def main() -> int:
    """Exit code 0: written, 1: not."""
    workflow = _parser().parse_args().workflow
    try:
        print(make_params(workflow))
    except JobError as problem:
        print(f"{workflow}: {problem}", file=sys.stderr)
        return 1
    except (OSError, UnicodeError) as problem:
        print(f"{workflow}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
