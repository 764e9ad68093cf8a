"""Writes the first version of a workflow's parameters: `portrait.params.yaml` for `portrait.json`.

    python3 scripts/make_params.py /workspace/workflows/portrait.json

Prompts, seeds, sizes, steps and input files become parameters with the workflow's own values as
defaults. Rename, delete and describe them as you like; an existing file is not replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from handler.common.errors import JobError
    from handler.request.params import SUFFIX
    from handler.request.references import RANDOM
    from handler.request.workflow import Workflow, read_workflow
    from scripts.request_form import read_file
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    how = "python3 -m pip install filetype PyYAML"
    print(f"make_params.py needs {missing.name}: {how}", file=sys.stderr)
    sys.exit(2)
from bootstrap.core.findings import Fault
from bootstrap.core.terminal import WRONG_USE, Parser, as_typed, closing
from scripts.errors import UsageError
from scripts.printing import say_error, show

_FIRST = {
    "text": "string",
    "prompt": "string",
    "steps": "integer",
    "cfg": "number",
    "width": "integer",
    "height": "integer",
    "batch_size": "integer",
    "length": "integer",
    "denoise": "number",
}
_BOUNDS = {"steps": (1, 200), "width": (16, 8192), "height": (16, 8192), "batch_size": (1, 64)}
_FIRST_FILES = frozenset(("image", "audio", "video", "file"))
_HEAD = """# What may be sent with {{"workflow_name": "{name}", "params": {{…}}}}.
# More: docs/workflows.md.
"""


def make_params(workflow: Path) -> Path:
    """Write the file beside `workflow`; returns its path. Raises UsageError and JobError if it
    cannot be read, and OSError, FileExistsError among them, if it cannot be written."""
    import yaml

    params = first_params(read_workflow(read_file(workflow)))
    place = workflow.with_name(workflow.stem + SUFFIX)
    text = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
    with open(place, "x", encoding="utf-8") as file:
        file.write(_HEAD.format(name=workflow.stem) + text)
    return place


def first_params(workflow: Workflow) -> dict[str, Any]:
    """The initial declaration: prompts, seeds, sizes, steps and input files, found by the inputs'
    names and the nodes' classes, with the workflow's own values as defaults."""
    params: dict[str, Any] = {}
    for node_id, node in workflow.items():
        for node_input, value in node["inputs"].items():
            found = _guess(node["class_type"], node_input, value)
            if found is not None:
                name, entry = found
                params[_free(name, params)] = {**entry, "sets": f"{node_id}.{node_input}"}
    return {"description": "", "params": params}


def _guess(class_type: str, name: str, value: Any) -> tuple[str, dict[str, Any]] | None:
    if isinstance(value, (list, Mapping)):
        return None
    if name == "seed" or name.endswith("_seed"):
        return name, {"type": "seed", "default": RANDOM}
    if name in _FIRST_FILES and "load" in class_type.lower() and isinstance(value, str):
        return name, {"type": "file", "required": True}
    kind = _FIRST.get(name)
    if kind is None or (kind == "string") != isinstance(value, str) or isinstance(value, bool):
        return None
    low, high = _BOUNDS.get(name, (None, None))
    bounds = {} if low is None else {"minimum": low, "maximum": high}
    return ("prompt" if name == "text" else name), {"type": kind, "default": value, **bounds}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _parser(prog: str) -> argparse.ArgumentParser:
    command = as_typed("params", prog)
    parser = Parser(
        prog=prog,
        description="Write the first version of a workflow's parameters beside it.",
        epilog=closing(
            {},
            [f"{command} /workspace/workflows/portrait.json", f"{command} workflow_api.json"],
            "exit codes:\n  0  written\n  1  not written\n"
            "  2  wrong use, or the workflow cannot be used",
        ),
    )
    parser.add_argument("workflow", type=Path, help="a workflow in API format")
    return parser


def main(argv: list[str], prog: str = "make_params.py") -> int:
    """Write it, and print its path; returns the exit code."""
    workflow = _parser(prog).parse_args(argv).workflow
    try:
        show(str(make_params(workflow)))
    except UsageError as problem:
        say_error(problem)
        return WRONG_USE
    except JobError as problem:
        say_error(Fault(problem.code, f"{workflow}: {problem.message}", problem.fix))
        return WRONG_USE
    except OSError as problem:
        why = problem.strerror or str(problem)
        why = "exists already and is not replaced" if isinstance(problem, FileExistsError) else why
        say_error(UsageError(f"{problem.filename or workflow}: {why}."))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
