"""`python -m bootstrap models add|list|plan|pull|verify`: the same on a Pod as on a worker; and
what it has in common with `nodes` (`nodes/cli.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TextIO, TypeVar

from bootstrap.config import Settings, read_settings
from bootstrap.core.findings import Finding, error
from bootstrap.core.log import set_up, show
from bootstrap.core.redact import masked
from bootstrap.core.terminal import Parser, closing, report, show_wrapped, stop_on_signals
from bootstrap.core.text import pluralize, printable, size_text
from bootstrap.models.background import provision_context
from bootstrap.models.download.progress import meters_for
from bootstrap.models.download.verify import check_content, check_hash, hash_file
from bootstrap.models.installed import (
    PathConflict,
    Present,
    Receipt,
    find_present,
    read_receipt,
    wanted_of,
    write_receipt,
)
from bootstrap.models.manifest_entry import ModelSpec, read_entry
from bootstrap.models.manifest_file import (
    MODELS,
    ManifestKind,
    Unreadable,
    add_entry,
    find_manifest,
    load_manifest,
)
from bootstrap.models.provision import ProvisionContext, provision
from bootstrap.models.sources import Sources
from bootstrap.net import DownloadError, disk_error
from bootstrap.volume import locate
from bootstrap.volume.categories import PICKLES, extension_of

OK, FAILED, USAGE = 0, 1, 2
_UNDER_NAME = " " * 8  # where a step's line goes on
_VARIABLES = {
    "VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)",
    "MODELS_MANIFEST": "the manifest (default: models.json at the volume's root)",
    "HF_TOKEN": "for gated repositories of Hugging Face",
    "CIVITAI_TOKEN": "for downloads from Civitai",
}
# What each command does, and its examples.
_COMMANDS = {
    "add": (
        "ask a source about a file and write its entry into the manifest",
        "add hf://org/repo/file.safetensors --directory loras",
        "add https://civitai.com/models/16576",
    ),
    "list": ("what the manifest lists, and what of it is there", "list", "list --json"),
    "plan": (
        "what pull would fetch, from where, how much, and whether it fits",
        "plan",
        "plan --manifest other.yaml",
    ),
    "pull": ("fetch what is missing", "pull", "pull --manifest other.yaml"),
    "verify": (
        "hash what is there and compare it with manifest and receipts",
        "verify",
        "verify --json",
    ),
}


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
        return f"{mark} {next(iter(self.about.values()))}  {self.what}"


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
        codes = "exit codes:\n  0  all is well\n  1  something is missing or wrong\n  2  wrong use"
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


def _no_volume(root: Path) -> Finding:
    said = f"There is no volume at {printable(str(root))}."
    return error("volume.not_found", said, "Set VOLUME_PATH to its folder.")


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
            report([_no_volume(self.root)], self.faults)
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


def main(
    argv: Sequence[str],
    out: TextIO | None = None,
    sources: Sources | None = None,
    prog: str = "python -m bootstrap models",
) -> int:
    """Run one command; its exit code. `sources` in place of the real ones are for the demo, which
    has its own servers."""
    return run(argv, _parser(prog), out, lambda *given: _Command(sources, *given))


def _parser(prog: str) -> argparse.ArgumentParser:
    what = "The models that a manifest names: add, see what is there, fetch the rest."
    parser, commands = manifest_parser(
        prog, what, _COMMANDS, _VARIABLES, (_COMMANDS["add"][1], "pull")
    )
    add = commands["add"]
    add.add_argument("url", help="https://..., hf://org/repo/file, urn:air:...")
    add.add_argument("--directory", help="folder under models/, such as loras")
    add.add_argument("--name", help="file name, if not the source's")
    add.add_argument("--optional", action="store_true", help="may come later")
    add.add_argument("--allow-pickle", action="store_true", help="accept a file that can run code")
    return parser


class _Command(ManifestCommand[ModelSpec]):
    kind = MODELS
    example = "add https://civitai.com/models/16576"

    def __init__(self, sources: Sources | None, *given: Any) -> None:
        super().__init__(*given)
        self._sources = sources

    @cached_property
    def _context(self) -> ProvisionContext:
        context = provision_context(self.settings, self.layout, meters_for())
        return replace(context, sources=self._sources or context.sources)

    def load(self) -> tuple[Sequence[ModelSpec], Sequence[Finding]] | None:
        http = self.settings.allow_private_download_urls
        manifest = load_manifest(self.setting, self.root, http)
        there = manifest.models or manifest.findings
        return (manifest.models, manifest.findings) if there else None

    def add_to(self, path: Path) -> tuple[list[ModelSpec], list[ModelSpec], bool]:
        http = self.settings.allow_private_download_urls
        spec, faults = read_entry(self._described(), self.arguments.url, http)
        report([f.finding(f.field, f.severity(False)) for f in faults], self.out)
        if spec is None:
            return [], [], False
        return [spec], [spec] if add_entry(path, spec) else [], True

    def _described(self) -> dict[str, object]:
        context = self._context
        source, link = context.sources.source_of(self.arguments.url)
        channel = context.options.channel()
        try:
            known = source.describe(link, channel)
        finally:
            channel.close()
        entry: dict[str, object] = {
            "name": self.arguments.name or known.name,
            "url": known.url,
            "directory": self.arguments.directory or known.directory,
        }
        if known.sha256 is not None:
            entry |= {"hash": known.sha256, "hash_type": "SHA256"}
        entry |= {k: v for k in ("size", "revision") if (v := getattr(known, k)) is not None}
        if self.arguments.optional:
            entry["optional"] = True
        if self.arguments.allow_pickle and extension_of(str(entry["name"])) in PICKLES:
            entry["allow_pickle"] = True
        return entry

    def plan(self, specs: Sequence[ModelSpec]) -> int:
        """What would be fetched; asks the sources for sizes."""
        steps = [self.look(spec, ask=True) for spec in specs]
        needed, known = _amount_of(steps)
        free = _free(self._context)
        fits = free is None or needed <= free
        room = "an unknown amount" if free is None else size_text(free)
        free_at = f"free at {self._context.models}: {room}"
        lines = [f"To fetch: {known}; {free_at}."] if steps else []
        if not fits:
            lines.append("It does not fit: delete files or enlarge the network volume.")
        self.show(steps, lines)
        return OK if fits and not any(step.problem for step in steps) else FAILED

    def pull(self, specs: Sequence[ModelSpec]) -> int:
        """Fetch what is missing."""
        results = provision(specs, self._context, stop_on_signals())
        if self.arguments.json:
            self.say(json.dumps([result.as_dict() for result in results], indent=2))
        else:
            report([f for result in results if (f := result.finding())], self.out)
            there = sum(result.good for result in results)
            self.say(f"{there} of {len(results)} models are there.")
        return OK if all(result.good or result.spec.optional for result in results) else FAILED

    def look(self, spec: ModelSpec, ask: bool) -> Step:
        about, context = {"model": str(spec.relative_path)}, self._context
        found = find_present(spec, context.models, context.also)
        if isinstance(found, Present):
            return Step(about, f"{size_text(found.receipt.size)} at {found.path}", there=True)
        if isinstance(found, PathConflict):
            text = f"{found.path} is there, but: {found.problem.message} {found.problem.fix}"
            return Step(about, text, problem=found.problem)
        if (cached := context.cached(spec)) is not None:
            return Step(about, f"in the platform's cache, {cached}", there=True)
        try:
            return self._to_fetch(spec, ask)
        except DownloadError as problem:
            said = f"{problem.message} {problem.fix}"
            return Step(about, said, to_fetch={"size": spec.size}, problem=problem)

    def _to_fetch(self, spec: ModelSpec, ask: bool) -> Step:
        source, link = self._context.sources.source_of(spec.url)
        host, credential, size = source.host_of(link), source.credential_name(link), spec.size
        if ask:
            channel = self._context.options.channel()
            try:
                located = source.locate(link, spec.revision, wanted_of(spec), channel)
                size = located.size or size
            finally:
                channel.close()
        amount = "unknown size" if size is None else size_text(size)
        optional = ", optional" if spec.optional else ""
        key = f", with {credential}" if credential else ""
        text = f"{amount} from {source.name} ({host}){key}{optional}"
        to_fetch = {"size": size, "host": host, "credential": credential}
        return Step({"model": str(spec.relative_path)}, text, to_fetch=to_fetch)

    def verified(self, spec: ModelSpec) -> Step:
        """By its hash, with the manifest and with the receipt of when it came; a receipt that has
        no hash yet gets one."""
        about, context = {"model": str(spec.relative_path)}, self._context
        for root in (context.models, *context.also):
            if os.path.isfile(root / spec.relative_path):
                return _verified(spec, root, about)
        found = find_present(spec, context.models, context.also)
        if isinstance(found, Present):
            return Step(about, f"under another folder's name, {found.path}", there=True)
        return Step(about, "not there")


def _verified(spec: ModelSpec, root: Path, about: Mapping[str, str]) -> Step:
    path, wanted = root / spec.relative_path, wanted_of(spec)
    receipt = read_receipt(root, spec.relative_path)
    try:
        facts = os.stat(path)
        checked = check_content(path, wanted)
        sha256 = hash_file(path)
        check_hash(sha256, wanted.sha256)
        if receipt is not None and receipt.sha256 is not None and wanted.sha256 is None:
            check_hash(sha256, receipt.sha256)
        fresh = Receipt(facts.st_size, facts.st_mtime_ns, sha256, (*checked, "sha256"))
        if receipt is None or receipt.sha256 is None or not receipt.still_true_of(facts):
            write_receipt(root, spec.relative_path, fresh)
    except DownloadError as problem:
        return Step(about, f"{path}: {problem.message} {problem.fix}", problem=problem)
    except OSError as problem:
        failed = disk_error(problem, path, None)
        return Step(about, failed.message, problem=failed)
    against = "the manifest" if wanted.sha256 else "its receipt" if receipt else "nothing yet"
    return Step(about, f"SHA-256 {sha256}, compared with {against}", there=True)


def _amount_of(steps: Sequence[Step]) -> tuple[int, str]:
    """Bytes to fetch, and what is known of them; a file that its source does not answer for counts
    with the manifest's size."""
    wanted = [step for step in steps if step.to_fetch]
    sizes = [size for step in wanted if (size := step.to_fetch.get("size")) is not None]
    unsized = len(wanted) - len(sizes)
    said = size_text(sum(sizes)) if sizes or not unsized else "an unknown amount"
    if sizes and unsized:
        said += f" and {pluralize(unsized, 'file')} of unknown size"
    guessed = any(step.problem and step.to_fetch.get("size") is not None for step in wanted)
    return sum(sizes), f"{said}, by the manifest" if guessed else said


def _free(context: ProvisionContext) -> int | None:
    folder = context.models
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return context.options.disk.free_bytes(folder)
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
