"""`python -m bootstrap models add|list|plan|pull|verify`: the same on a Pod as on a worker."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from bootstrap.config import Settings, read_settings
from bootstrap.core.findings import Finding, errors_in
from bootstrap.core.redact import masked
from bootstrap.core.text import megabytes
from bootstrap.fetch.progress import meters_for
from bootstrap.manifest import Manifest
from bootstrap.manifest_entry import read_entry
from bootstrap.manifest_file import Unreadable, add_entry, find_manifest, load_manifest
from bootstrap.models_plan import Step, plan_models, verify_models
from bootstrap.net.errors import DownloadError
from bootstrap.provision import provision
from bootstrap.provisioning import workplace_for
from bootstrap.sources import Sources
from bootstrap.volume import locate
from bootstrap.volume.categories import PICKLES, extension_of
from bootstrap.workplace import Workplace

_OK, _FAILED, _USAGE = 0, 1, 2


def main(argv: Sequence[str], out: TextIO | None = None, sources: Sources | None = None) -> int:
    """Run one command; 0 when all is well, 1 when something is wrong or missing, 2 for usage.

    `sources` in place of the real ones are for the demo, which has its own servers.
    """
    arguments = _parser().parse_args(argv)
    settings, findings = read_settings()
    stream = sys.stdout if out is None else out
    if findings:
        return _report(findings, stream)
    return _Command(arguments, settings, stream, sources).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bootstrap models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "add": "ask a source about a file and write its entry into the manifest",
        "list": "what the manifest wants, and what of it is there",
        "plan": "what pull would fetch, from where, how much, and whether it fits",
        "pull": "fetch what is missing",
        "verify": "hash what is there and compare it with manifest and receipts",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
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


class _Command:
    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Settings,
        out: TextIO,
        sources: Sources | None,
    ) -> None:
        self.sources = sources
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
            self._say("  python -m bootstrap models add https://civitai.com/models/...")
            return _FAILED
        bad = _report(manifest.findings, self.out)
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
            spec, complaints = read_entry(
                entry, self.arguments.url, self.settings.allow_private_download_urls
            )
            for complaint in complaints:
                self._say(f"{complaint.field}: {complaint.message} {complaint.fix}")
            if spec is None:
                return _FAILED
            changed = add_entry(path, spec)
        except DownloadError as problem:
            self._say(f"{problem.message}\n  {problem.fix}")
            return _FAILED
        except Unreadable as problem:
            return _report([problem.finding], self.out)
        except OSError as problem:
            self._say(f"{path} cannot be written ({problem.strerror}).")
            return _FAILED
        self._say(f"{'Added to' if changed else 'Already in'} {path}:")
        self._say(json.dumps(spec.as_entry(), indent=2, ensure_ascii=False))
        self._say("Fetch it with: python -m bootstrap models pull")
        return _OK

    def _described(self) -> dict[str, object]:
        workplace = self._workplace()
        source, link = workplace.sources.source_of(self.arguments.url)
        channel = workplace.tools.channel()
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
        """What is wanted; asks nobody."""
        steps = plan_models(manifest.models, self._workplace(), ask=False)
        self._show(steps, [f"{_mark(step)} {step.place}  {step.what}" for step in steps])
        return _OK if all(step.there for step in steps) else _FAILED

    def plan(self, manifest: Manifest) -> int:
        """What would be fetched; asks the sources for sizes."""
        workplace = self._workplace()
        steps = plan_models(manifest.models, workplace, ask=True)
        lines = [f"{_mark(step)} {step.place}  {step.what}" for step in steps]
        needed = sum(step.size or 0 for step in steps if step.fetch)
        free = _free(workplace)
        fits = free is None or needed <= free
        room = "an unknown amount" if free is None else megabytes(free)
        lines.append(f"To fetch: {megabytes(needed)}; free at {workplace.models}: {room}.")
        if not fits:
            lines.append("It does not fit: delete files or enlarge the network volume.")
        self._show(steps, lines)
        return _OK if fits and not any(step.problem for step in steps) else _FAILED

    def pull(self, manifest: Manifest) -> int:
        """Fetch what is missing."""
        results = provision(manifest.models, self._workplace(), _stop_on_signals())
        if self.arguments.json:
            receipts = [result.as_dict() for result in results]
            self._say(json.dumps(receipts, indent=2))
        else:
            _report([f for result in results if (f := result.finding())], self.out)
            there = sum(result.good for result in results)
            self._say(f"{there} of {len(results)} models are there.")
        return _OK if all(result.good or result.spec.optional for result in results) else _FAILED

    def verify(self, manifest: Manifest) -> int:
        """Hash everything that is there."""
        steps = list(verify_models(manifest.models, self._workplace()))
        self._show(steps, [f"{_mark(step)} {step.place}  {step.what}" for step in steps])
        return _OK if all(step.there for step in steps) else _FAILED

    def _workplace(self) -> Workplace:
        workplace = workplace_for(self.settings, self.layout, meters_for())
        return replace(workplace, sources=self.sources or workplace.sources)

    def _show(self, steps: Sequence[Step], lines: Sequence[str]) -> None:
        if self.arguments.json:
            self._say(json.dumps([step.as_dict() for step in steps], indent=2))
        else:
            self._say("\n".join(lines))

    def _say(self, text: str) -> None:
        print(masked(text), file=self.out)


def _stop_on_signals() -> threading.Event:
    """Ctrl-C and a Pod's end stop in good order, so that the next pull goes on from there."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    return stop


def _mark(step: Step) -> str:
    return "ok     " if step.there else "FAILED " if step.problem else "missing"


def _free(workplace: Workplace) -> int | None:
    folder = workplace.models
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return workplace.tools.disk.free_bytes(folder)
    except OSError:
        return None


def _report(findings: Sequence[Finding], out: TextIO) -> int:
    for finding in findings:
        print(f"{finding.severity.value}: {finding.message}", file=out)
        if finding.fix:
            print(f"  {finding.fix}", file=out)
    return _FAILED if errors_in(findings) else _OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
