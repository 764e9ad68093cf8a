"""Commands that work with a manifest: what `comfyui-worker models …` and `nodes …` share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TextIO, TypeVar

from bootstrap.config import Settings, read_settings
from bootstrap.core.findings import Finding
from bootstrap.core.log import set_up, show
from bootstrap.core.redact import masked
from bootstrap.core.terminal import Parser, closing, report, show_wrapped
from bootstrap.models.manifest_file import ManifestKind, Unreadable, find_manifest
from bootstrap.net import DownloadError, disk_error
from bootstrap.volume import locate
from bootstrap.volume.locate import no_volume

OK, FAILED, USAGE = 0, 1, 2
_UNDER_NAME = " " * 8  # where a step's line goes on


@dataclass(frozen=True)
class Step:
    """One wanted thing; `about` says which, first by its kind and name. `there`: nothing is to be
    done. `to_fetch` is what else there is to say of what would be fetched: `size` in bytes (None
    unknown), `host` and the like."""

    about: Mapping[str, str]
    what: str
    there: bool = False
    to_fetch: Mapping[str, Any] = field(default_factory=dict)
    problem: DownloadError | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        data = {**self.about, "there": self.there, "what": self.what, **self.to_fetch}
        if self.problem is not None:
            kind, name = next(iter(self.about.items()))
            data["problem"] = self.problem.finding(name, **{kind: name}).as_dict()
        return data

    def line(self) -> str:
        """For a terminal."""
        mark = "ok     " if self.there else "FAILED " if self.problem else "missing"
        code = f"error[{self.problem.code}]: " if self.problem else ""
        return f"{mark} {next(iter(self.about.values()))}  {code}{self.what}"


def run(
    argv: Sequence[str],
    parser: argparse.ArgumentParser,
    out: TextIO | None,
    make: Callable[[argparse.Namespace, Settings, TextIO, str], ManifestCommand[Any]],
) -> int:
    """Run one command; 0 when all is well, 1 when something is wrong or missing, 2 for usage."""
    arguments = parser.parse_args(argv)
    settings, findings = read_settings()
    set_up(settings.log_level)
    stream = sys.stdout if out is None else out
    command = make(arguments, settings, stream, parser.prog)
    if report(findings, command.faults):
        return FAILED
    try:
        return command.run()
    except (DownloadError, Unreadable) as problem:
        report([problem.finding()], command.faults)
    return FAILED


def manifest_parser(
    prog: str,
    what: str,
    commands: Mapping[str, tuple[str, ...]],
    variables: Mapping[str, str],
    examples: Iterable[str],
) -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    """A parser of all `commands` (what each does, and how it is typed), and theirs by name."""

    def end(typed: Iterable[str]) -> str:
        codes = "exit codes:\n  0  success\n  1  something is missing or wrong\n  2  wrong use"
        return closing(variables, [f"{prog} {example}" for example in typed], codes)

    parser = Parser(prog=prog, description=what, epilog=end(examples))
    below = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    manifest = next(name for name in variables if name.endswith("_MANIFEST"))
    for name, (text, *typed) in commands.items():
        command = below.add_parser(
            name, help=text, description=f"{text.capitalize()}.", epilog=end(typed)
        )
        command.add_argument("--manifest", metavar="FILE", help=f"instead of {manifest}")
        if name not in ("add", "map"):
            command.add_argument("--json", action="store_true", help="as JSON")
    return parser, below.choices


class HasEntry(Protocol):
    """A wanted thing."""

    def as_entry(self) -> dict[str, Any]:
        """The manifest's entry that says this."""
        ...


Spec = TypeVar("Spec", bound=HasEntry)


class ManifestCommand(Generic[Spec]):
    """What can be done with a manifest of one kind; a command is a method of that name."""

    kind: ClassVar[ManifestKind]
    example: ClassVar[str]
    #: Commands that do not read the manifest.
    alone: ClassVar[tuple[str, ...]] = ("add",)

    def __init__(
        self, arguments: argparse.Namespace, settings: Settings, out: TextIO, prog: str
    ) -> None:
        self.arguments = arguments
        self.settings = settings
        self.out = out
        # Beside JSON, which a program reads.
        self.faults = sys.stderr if getattr(arguments, "json", False) else out
        self.prog = prog
        self.layout = locate(settings)
        self.root = self.layout.root
        self.setting: str | None = getattr(settings, self.kind.variable.lower())
        if arguments.manifest is not None:
            self.setting = str(Path(arguments.manifest).absolute())

    def load(self) -> tuple[Sequence[Spec], Sequence[Finding]] | None:
        """What the manifest lists, and what is wrong with it; None where there is none."""
        raise NotImplementedError

    def add_to(self, path: Path) -> tuple[list[Spec], list[Spec], bool]:
        """Write what is asked for into the manifest: it, what of it was not there yet, and whether
        it is all. Raises DownloadError, Unreadable and OSError."""
        raise NotImplementedError

    def look(self, spec: Spec, ask: bool) -> Step:
        """What a pull would do; `ask` the servers for what the manifest does not say."""
        raise NotImplementedError

    def verified(self, spec: Spec) -> Step:
        """Read what is there, and compare it."""
        raise NotImplementedError

    def run(self) -> int:
        """The command's exit code. Raises DownloadError and Unreadable."""
        if not self.layout.root_exists and self.layout.comfyui is None:
            report([no_volume(self.layout)], self.faults)
            return FAILED
        act = getattr(self, self.arguments.command)
        if self.arguments.command in self.alone:
            return int(act())
        manifest = self.load()
        if manifest is None:
            where = self.root / self.kind.names[0]
            self.say(f"No manifest: put one at {where}, or add to it:")
            self.say(f"  {self.prog} {self.example}")
            return FAILED
        specs, findings = manifest
        bad = FAILED if report(findings, self.faults) else OK
        return max(int(act(specs)), bad)

    def add(self) -> int:
        """Ask the source, write the entry."""
        path = find_manifest(self.setting, self.root, self.kind) or self.root / self.kind.names[0]
        if isinstance(path, str):
            self.say(f"{self.kind.variable} holds the manifest itself; give --manifest FILE.")
            return USAGE
        try:
            specs, changed, complete = self.add_to(path)
        except OSError as problem:
            report([disk_error(problem, path, None).finding()], self.out)
            return FAILED
        for spec in specs:
            self.say(f"{'Added to' if spec in changed else 'Already in'} {path}:")
            self.say(json.dumps(spec.as_entry(), indent=2, ensure_ascii=False))
        if specs:
            self.say(f"Fetch what is missing with: {self.prog} pull")
        return OK if complete else FAILED

    def list(self, specs: Sequence[Spec]) -> int:
        """What the manifest lists; uses no network."""
        return self.show([self.look(spec, ask=False) for spec in specs])

    def verify(self, specs: Sequence[Spec]) -> int:
        """Read everything that is there."""
        return self.show([self.verified(spec) for spec in specs])

    def show(self, steps: Sequence[Step], more: Sequence[str] = ()) -> int:
        """Say them; are all there?"""
        if self.arguments.json:
            self.say(json.dumps([step.as_dict() for step in steps], indent=2))
        else:
            for line in (*(step.line() for step in steps), *more):
                show_wrapped(masked(line), self.out, _UNDER_NAME)
        return OK if all(step.there for step in steps) else FAILED

    def say(self, text: str) -> None:
        """On a line of its own, without secrets."""
        show(f"{masked(text)}\n", self.out)
