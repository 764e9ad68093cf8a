"""`comfyui-worker boot [--json]`: boot, print the report, stop. Exit 0 ready, 1 not.

In a clone `python -m bootstrap`, which has `models …` (`models/cli.py`) and `nodes …`
(`nodes/cli.py`) too.
"""

from __future__ import annotations

import json
import os
import sys

from bootstrap.boot import Boot, boot_json, boot_text
from bootstrap.config import read_settings
from bootstrap.core.findings import Outcome
from bootstrap.core.log import set_up, show, use_utf8
from bootstrap.core.terminal import Parser, closing, style_of


def main(argv: list[str], prog: str = "python -m bootstrap") -> int:
    """Run one boot and report on it; 0 if it is `ready`, else 1."""
    if argv[:1] == ["models"]:
        from bootstrap.models import cli

        return cli.main(argv[1:], prog=f"{prog} models")
    if argv[:1] == ["nodes"]:
        from bootstrap.nodes import cli as nodes_cli

        return nodes_cli.main(argv[1:], prog=f"{prog} nodes")
    parser = Parser(
        prog=prog,
        description="Boot once, print the report, stop. Takes no jobs.",
        epilog=closing(
            {"VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)"},
            [prog, f"{prog} --json | jq .outcome"],
            "exit codes:\n  0  ready\n  1  degraded or unfit\n  2  wrong use",
        ),
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    arguments = parser.parse_args(argv)
    settings, problems = read_settings()
    set_up(settings.log_level, settings.comfy_log_level)
    boot = Boot(settings, problems, os.environ)
    try:
        boot.begin()
        report = boot.finish().report
    finally:
        boot.stop()
    text = (
        json.dumps(boot_json(report), indent=2)
        if arguments.json
        else boot_text(report, style_of(sys.stdout))
    )
    show(f"{text}\n", sys.stdout)
    return 0 if report.outcome is Outcome.READY else 1


if __name__ == "__main__":
    use_utf8()
    sys.exit(main(sys.argv[1:]))
