"""`python -m bootstrap models add|list|plan|pull|verify`: the same on a Pod as on a worker."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from bootstrap.config import Settings, read_settings
from bootstrap.core.log import set_up, show
from bootstrap.core.redact import masked
from bootstrap.core.terminal import Parser, closing, report, step_line, stop_on_signals
from bootstrap.core.text import size_text
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
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_entry import ModelSpec, read_entry
from bootstrap.models.manifest_file import Unreadable, add_entry, find_manifest, load_manifest
from bootstrap.models.provision import ProvisionContext, provision
from bootstrap.models.sources import Sources
from bootstrap.net import DownloadError, disk_error
from bootstrap.volume import locate
from bootstrap.volume.categories import PICKLES, extension_of

_OK, _FAILED, _USAGE = 0, 1, 2
# What each does, and how it is typed.
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
    """One model. `fetch`: it would be fetched, `size` bytes (None unknown) from `host` with the
    credential called `credential`. `there`: nothing is to be done."""

    place: str
    what: str
    there: bool = False
    fetch: bool = False
    size: int | None = None
    host: str = ""
    credential: str | None = None
    problem: DownloadError | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        data: dict[str, object] = {"model": self.place, "there": self.there, "what": self.what}
        if self.fetch:
            data |= {"size": self.size, "host": self.host, "credential": self.credential}
        if self.problem is not None:
            data["problem"] = self.problem.finding(self.place, model=self.place).as_dict()
        return data

    def line(self) -> str:
        """For a terminal."""
        return step_line(self.place, self.what, self.there, self.problem is not None)


def plan_models(specs: Sequence[ModelSpec], context: ProvisionContext, ask: bool) -> list[Step]:
    """What a pull would do; `ask` the sources for the sizes that the manifest does not give."""
    return [_plan(spec, context, ask) for spec in specs]


def _plan(spec: ModelSpec, context: ProvisionContext, ask: bool) -> Step:
    place = str(spec.place)
    found = find_present(spec, context.models, context.also)
    if isinstance(found, Present):
        return Step(place, f"{size_text(found.receipt.size)} at {found.path}", there=True)
    if isinstance(found, PathConflict):
        text = f"{found.path} is there, but: {found.problem.message} {found.problem.fix}"
        return Step(place, text, problem=found.problem)
    if (cached := context.cached(spec)) is not None:
        return Step(place, f"in the platform's cache, {cached}", there=True)
    try:
        return _to_fetch(spec, context, ask)
    except DownloadError as problem:
        return Step(place, f"{problem.message} {problem.fix}", problem=problem)


def _to_fetch(spec: ModelSpec, context: ProvisionContext, ask: bool) -> Step:
    source, link = context.sources.source_of(spec.url)
    host, credential, size = source.host_of(link), source.credential_name(link), spec.size
    if ask:
        channel = context.tools.channel()
        try:
            located = source.locate(link, spec.revision, wanted_of(spec), channel)
            size = located.size or size
        finally:
            channel.close()
    amount = "unknown size" if size is None else size_text(size)
    optional = ", optional" if spec.optional else ""
    key = f", with {credential}" if credential else ""
    text = f"{amount} from {source.name} ({host}){key}{optional}"
    return Step(str(spec.place), text, fetch=True, size=size, host=host, credential=credential)


def verify_models(specs: Sequence[ModelSpec], context: ProvisionContext) -> Iterator[Step]:
    """Hash what is there and compare it with the manifest, and with the receipt of when it came.

    A file whose receipt has no hash yet gets one now.
    """
    for spec in specs:
        yield _verify(spec, context)


def _verify(spec: ModelSpec, context: ProvisionContext) -> Step:
    place = str(spec.place)
    try:
        root, relative = next(
            (root, place_there)
            for root in (context.models, *context.also)
            for place_there in [spec.place]
            if os.path.isfile(root / place_there)
        )
    except StopIteration:
        found = find_present(spec, context.models, context.also)
        if isinstance(found, Present):
            return Step(place, f"under another folder's name, {found.path}", there=True)
        return Step(place, "not there")
    path, wanted = root / relative, wanted_of(spec)
    receipt = read_receipt(root, relative)
    try:
        facts = os.stat(path)
        checked = check_content(path, wanted)
        sha256 = hash_file(path)
        check_hash(sha256, wanted.sha256)
        if receipt is not None and receipt.sha256 is not None and wanted.sha256 is None:
            check_hash(sha256, receipt.sha256)
        fresh = Receipt(facts.st_size, facts.st_mtime_ns, sha256, (*checked, "sha256"))
        if receipt is None or receipt.sha256 is None or not receipt.still_true_of(facts):
            write_receipt(root, relative, fresh)
    except DownloadError as problem:
        return Step(place, f"{path}: {problem.message} {problem.fix}", problem=problem)
    except OSError as problem:
        failed = disk_error(problem, path, None)
        return Step(place, failed.message, problem=failed)
    against = "the manifest" if wanted.sha256 else "its receipt" if receipt else "nothing yet"
    return Step(place, f"SHA-256 {sha256}, compared with {against}", there=True)


def main(
    argv: Sequence[str],
    out: TextIO | None = None,
    sources: Sources | None = None,
    prog: str = "python -m bootstrap models",
) -> int:
    """Run one command; 0 when all is well, 1 when something is wrong or missing, 2 for usage.

    `sources` in place of the real ones are for the demo, which has its own servers.
    """
    arguments = _parser(prog).parse_args(argv)
    settings, findings = read_settings()
    set_up(settings.log_level)
    stream = sys.stdout if out is None else out
    if findings:
        return _FAILED if report(findings, stream) else _OK
    return _Command(arguments, settings, stream, sources, prog).run()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="The models that a manifest names: add, see what is there, fetch the rest.",
        epilog=_closing(prog, (_COMMANDS["add"][1], "pull")),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, *examples) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f"{text.capitalize()}.", epilog=_closing(prog, examples)
        )
        command.add_argument("--manifest", metavar="FILE", help="instead of MODELS_MANIFEST")
        if name == "add":
            command.add_argument("url", help="https://..., hf://org/repo/file, urn:air:...")
            command.add_argument("--directory", help="folder under models/, such as loras")
            command.add_argument("--name", help="file name, if not the source's")
            command.add_argument("--optional", action="store_true", help="may come later")
            command.add_argument(
                "--allow-pickle", action="store_true", help="accept a file that can run code"
            )
        else:
            command.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _closing(prog: str, examples: Iterable[str]) -> str:
    return closing(
        {
            "VOLUME_PATH": "the volume (default: /runpod-volume, else /workspace)",
            "MODELS_MANIFEST": "the manifest (default: models.json at the volume's root)",
            "HF_TOKEN": "for gated repositories of Hugging Face",
            "civitai_token": "for downloads from Civitai",
        },
        [f"{prog} {example}" for example in examples],
        "exit codes:\n  0  all is well\n  1  something is missing or wrong\n  2  wrong use",
    )


class _Command:
    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Settings,
        out: TextIO,
        sources: Sources | None,
        prog: str,
    ) -> None:
        self.sources = sources
        self.prog = prog
        self.arguments = arguments
        self.settings = settings
        self.out = out
        self.layout = locate(settings)
        self.setting: str | None = settings.models_manifest
        if arguments.manifest is not None:
            self.setting = str(Path(arguments.manifest).absolute())

    def run(self) -> int:
        """The command's exit code."""
        if self.arguments.command == "add":
            return self.add()
        http = self.settings.allow_private_download_urls
        manifest = load_manifest(self.setting, self.layout.root, http)
        if not manifest.models and not manifest.findings:
            self._say(f"No manifest: put one at {self.layout.root / 'models.json'}, or add a URL:")
            self._say(f"  {self.prog} add https://civitai.com/models/...")
            return _FAILED
        bad = _FAILED if report(manifest.findings, self.out) else _OK
        code: int = getattr(self, self.arguments.command)(manifest)
        return max(code, bad)

    def add(self) -> int:
        """Ask the source, write the entry."""
        path = find_manifest(self.setting, self.layout.root) or self.layout.root / "models.json"
        if isinstance(path, str):
            self._say("MODELS_MANIFEST holds the manifest itself; give --manifest FILE.")
            return _USAGE
        try:
            entry = self._described()
            spec, faults = read_entry(
                entry, self.arguments.url, self.settings.allow_private_download_urls
            )
            for fault in faults:
                self._say(f"{fault.field}: {fault.message} {fault.fix}")
            if spec is None:
                return _FAILED
            changed = add_entry(path, spec)
        except DownloadError as problem:
            self._say(f"error: {problem.message}\n  {problem.fix}")
            return _FAILED
        except Unreadable as problem:
            report([problem.finding()], self.out)
            return _FAILED
        except OSError as problem:
            self._say(f"{path} cannot be written ({problem.strerror}).")
            return _FAILED
        self._say(f"{'Added to' if changed else 'Already in'} {path}:")
        self._say(json.dumps(spec.as_entry(), indent=2, ensure_ascii=False))
        self._say(f"Fetch it with: {self.prog} pull")
        return _OK

    def _described(self) -> dict[str, object]:
        context = self._context()
        source, link = context.sources.source_of(self.arguments.url)
        channel = context.tools.channel()
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

    def list(self, manifest: Manifest) -> int:
        """What is wanted; asks no server."""
        steps = plan_models(manifest.models, self._context(), ask=False)
        self._show(steps)
        return _OK if all(step.there for step in steps) else _FAILED

    def plan(self, manifest: Manifest) -> int:
        """What would be fetched; asks the sources for sizes."""
        context = self._context()
        steps = plan_models(manifest.models, context, ask=True)
        needed = sum(step.size or 0 for step in steps if step.fetch)
        free = _free(context)
        fits = free is None or needed <= free
        room = "an unknown amount" if free is None else size_text(free)
        lines = [f"To fetch: {size_text(needed)}; free at {context.models}: {room}."]
        if not fits:
            lines.append("It does not fit: delete files or enlarge the network volume.")
        self._show(steps, lines)
        return _OK if fits and not any(step.problem for step in steps) else _FAILED

    def pull(self, manifest: Manifest) -> int:
        """Fetch what is missing."""
        results = provision(manifest.models, self._context(), stop_on_signals())
        if self.arguments.json:
            receipts = [result.as_dict() for result in results]
            self._say(json.dumps(receipts, indent=2))
        else:
            report([f for result in results if (f := result.finding())], self.out)
            there = sum(result.good for result in results)
            self._say(f"{there} of {len(results)} models are there.")
        return _OK if all(result.good or result.spec.optional for result in results) else _FAILED

    def verify(self, manifest: Manifest) -> int:
        """Hash everything that is there."""
        steps = list(verify_models(manifest.models, self._context()))
        self._show(steps)
        return _OK if all(step.there for step in steps) else _FAILED

    def _context(self) -> ProvisionContext:
        context = provision_context(self.settings, self.layout, meters_for())
        return replace(context, sources=self.sources or context.sources)

    def _show(self, steps: Sequence[Step], more: Sequence[str] = ()) -> None:
        if self.arguments.json:
            self._say(json.dumps([step.as_dict() for step in steps], indent=2))
        else:
            self._say("\n".join([*(step.line() for step in steps), *more]))

    def _say(self, text: str) -> None:
        show(f"{masked(text)}\n", self.out)


def _free(context: ProvisionContext) -> int | None:
    folder = context.models
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return context.tools.disk.free_bytes(folder)
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
