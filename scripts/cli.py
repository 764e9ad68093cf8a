"""`comfyui-worker`: all commands of this project."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

if sys.version_info < (3, 10):  # noqa: UP036  # said before anything fails to parse
    sys.exit(f"comfyui-worker needs Python 3.10 or newer; this is {sys.version.split()[0]}")

import bootstrap
from bootstrap.core.log import use_utf8
from bootstrap.core.terminal import PROGRAM, WRONG_USE, Parser, closing, nearest

Main = Callable[[list[str], str], int]


@dataclass(frozen=True)
class Command:
    """One subcommand. Its modules are imported only when it is used: the checker needs no SDK.
    `options`, those of its own subcommands (`below`), and whether it takes `files` are for
    completion."""

    what: str
    run: Main
    options: tuple[str, ...] = ()
    below: Mapping[str, str] = field(default_factory=dict)
    files: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help", "help"):
        _show(_help())
        return 0 if given else WRONG_USE
    if given[0] in ("-V", "--version"):
        print(f"{PROGRAM} {bootstrap.__version__}")
        return 0
    command = COMMANDS.get(given[0])
    if command is None:
        guess = nearest(given[0], list(COMMANDS))
        meant = f" Did you mean {guess}?" if guess else f" There are: {', '.join(COMMANDS)}."
        return _refused(f"there is no command {given[0]!r}.{meant}")
    try:
        return command.run(given[1:], f"{PROGRAM} {given[0]}")
    except ModuleNotFoundError as missing:
        return _refused(_lacks(given[0], missing))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        from scripts.printing import drop_output

        drop_output()
        return 1


def console() -> int:
    """The console script's entry: in UTF-8, whatever the locale says."""
    use_utf8()
    return main()


def _refused(why: str) -> int:
    print(f"{PROGRAM}: {why}", file=sys.stderr)
    return WRONG_USE


def _lacks(command: str, missing: ModuleNotFoundError) -> str:
    return (
        f"{command} needs the package {missing.name}, which is not installed in {sys.executable}. "
        f"Install this project with its packages: python3 -m pip install ."
    )


def _help() -> str:
    lines = [f"  {name:<12}{command.what}" for name, command in COMMANDS.items()]
    end = closing(
        {"…": "each command names its own; all of the worker's: docs/settings.md"},
        [
            f"{PROGRAM} doctor /workspace",
            f'{PROGRAM} submit workflow_api.json --set 6.text="a cat"',
        ],
        "exit codes:\n  0    success\n  1    failure\n  2    wrong use\n  130  stopped by Ctrl-C",
    )
    return "\n".join(
        (
            f"usage: {PROGRAM} COMMAND [OPTIONS]",
            "",
            "Runs ComfyUI on Runpod Serverless from a network volume.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists its options; --version prints the version.",
            "",
            end,
        )
    )


def _serve(argv: list[str], prog: str) -> int:
    parser = Parser(
        prog=prog,
        description="Boot, then take jobs from Runpod. The container's command.",
        epilog=closing(
            {
                "VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)",
                "COMFYUI_ARGS": "flags for ComfyUI",
                "…": "all variables: docs/settings.md",
            },
            [f"{prog}", f"{prog} --local --port 8000"],
            "exit codes:\n  0  ended by SIGTERM, all jobs answered\n  1  could not serve\n"
            "  2  wrong use",
        ),
    )
    parser.add_argument(
        "--local", action="store_true", help="take jobs over HTTP instead, on this machine"
    )
    parser.add_argument("--host", default="127.0.0.1", help="with --local (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="with --local (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    for package in ("runpod", "aiohttp"):  # before ComfyUI is started in vain
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    from handler.__main__ import main as serve

    sys.argv = [prog]
    if arguments.local:
        sys.argv += ["--rp_serve_api", "--rp_api_host", arguments.host]
        sys.argv += ["--rp_api_port", str(arguments.port)]
    serve()
    return 0


def _boot(argv: list[str], prog: str) -> int:
    from bootstrap.__main__ import main as boot

    return boot(argv, prog)


def _doctor(argv: list[str], prog: str) -> int:
    from scripts.check_volume import main as check

    return check(argv, os.environ, prog)


def _models(argv: list[str], prog: str) -> int:
    from bootstrap.models.cli import main as models

    return models(argv, prog=prog)


def _nodes(argv: list[str], prog: str) -> int:
    from bootstrap.nodes.cli import main as nodes

    return nodes(argv, prog=prog)


def _submit(argv: list[str], prog: str) -> int:
    from scripts.submit import main as submit

    return submit(argv, os.environ, prog)


def _params(argv: list[str], prog: str) -> int:
    from scripts.make_params import main as make_params

    return make_params(argv, prog)


def _health(argv: list[str], prog: str) -> int:
    parser = Parser(
        prog=prog,
        description="Show the state of the workers on this machine.",
        epilog=closing(
            {"TMPDIR": "where workers put their health socket (default: /tmp)"},
            [prog, f"until {prog}; do sleep 5; done"],
            "exit codes:\n  0  all are healthy\n  1  one is not, or none runs\n  2  wrong use",
        ),
    )
    parser.parse_args(argv)
    from bootstrap.healthcheck import main as health

    return health()


def _completion(argv: list[str], prog: str) -> int:
    parser = Parser(
        prog=prog,
        description="Print a script that completes commands and options in a shell.",
        epilog=closing(
            {},
            [f'eval "$({prog} bash)"   # in ~/.bashrc', f'eval "$({prog} zsh)"    # in ~/.zshrc'],
            "exit codes:\n  0  printed\n  2  wrong use",
        ),
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(argv).shell
    for_zsh = ["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []
    _show("\n".join((*for_zsh, _completions(COMMANDS))))
    return 0


def _completions(commands: Mapping[str, Command]) -> str:
    """For bash: the commands, their own subcommands, the options of each, and files."""
    cases = [_case(name, (*c.options, *c.below), c.files) for name, c in commands.items()]
    for name, command in commands.items():
        cases += [
            _case(f"{name} {b}", options.split(), True) for b, options in command.below.items()
        ]
    nested = "|".join(name for name, command in commands.items() if command.below)
    return "\n".join(
        (
            "_comfyui_worker() {",
            '  local words="" files="" word="${COMP_WORDS[COMP_CWORD]}" path="${COMP_WORDS[1]}"',
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$word"))',
            "    return",
            "  fi",
            '  if [ "$COMP_CWORD" -gt 2 ]; then',
            f'    case "$path" in {nested}) path="$path ${{COMP_WORDS[2]}}" ;; esac',
            "  fi",
            '  case "$path" in',
            *cases,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            '  if [ -n "$files" ]; then COMPREPLY+=($(compgen -f -- "$word")); fi',
            "}",
            f"complete -o filenames -F _comfyui_worker {PROGRAM}",
        )
    )


def _case(path: str, words: Sequence[str], files: bool) -> str:
    also = " files=yes" if files else ""
    return f'    "{path}") words="{" ".join((*words, "--help"))}"{also} ;;'


def _show(text: str) -> None:
    from scripts.printing import show

    show(text)


COMMANDS: Mapping[str, Command] = {
    "serve": Command("boot, then take jobs", _serve, ("--local", "--host", "--port")),
    "boot": Command("boot, print the report, stop", _boot, ("--json",)),
    "doctor": Command(
        "check a volume, and repair what is safe",
        _doctor,
        tuple("--json --deep --html --verbose --quiet --fix --yes --dry-run".split()),
        files=True,
    ),
    "models": Command(
        "models by manifest: add, list, plan, pull, verify",
        _models,
        below={
            "add": "--manifest --directory --name --optional --allow-pickle",
            **dict.fromkeys(("list", "plan", "pull", "verify"), "--manifest --json"),
        },
    ),
    "nodes": Command(
        "custom nodes by manifest: add, list, plan, pull, verify, map",
        _nodes,
        below={
            "add": "--manifest --ref --directory --from",
            **dict.fromkeys(("list", "plan", "verify"), "--manifest --json"),
            "pull": "--manifest --json --force",
            "map": "--manifest --refresh --url",
        },
    ),
    "submit": Command(
        "send a workflow to an endpoint and save its results",
        _submit,
        tuple(
            "--set --name --param --image --max-wait --output --endpoint --url --timeout "
            "--diagnostics --deep --html --previews --json".split()
        ),
        files=True,
    ),
    "params": Command("make a workflow on the volume a typed endpoint", _params, files=True),
    "health": Command("show the state of the workers on this machine", _health),
    "completion": Command(
        "a script that completes commands in bash or zsh", _completion, ("bash", "zsh")
    ),
}


if __name__ == "__main__":
    sys.exit(console())
