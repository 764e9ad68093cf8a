"""`comfyui-worker models add|list|plan|pull|verify`: the same on a Pod as on a worker."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from bootstrap.core.findings import Finding
from bootstrap.core.terminal import report, stop_on_signals
from bootstrap.core.text import pluralize, size_text
from bootstrap.models.download.progress import meters_for
from bootstrap.models.manifest_command import (
    FAILED,
    OK,
    ManifestCommand,
    Step,
    manifest_parser,
    run,
)
from bootstrap.models.manifest_entry import ModelSpec, read_entry
from bootstrap.models.manifest_file import (
    MODELS,
    add_entry,
    load_manifest,
)
from bootstrap.models.presence import (
    PathConflict,
    Present,
    find_present,
    verify,
    wanted_of,
)
from bootstrap.models.provision import ProvisionContext, provision
from bootstrap.models.provisioner import provision_context
from bootstrap.models.sources import Sources
from bootstrap.net import DownloadError
from bootstrap.volume.categories import PICKLES, extension_of

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
    "list": ("show the listed models, and which are there", "list", "list --json"),
    "plan": (
        "show what pull would fetch, from where, how much, and whether it fits",
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
    what = "Models by manifest: add, list, fetch, verify."
    parser, commands = manifest_parser(
        prog, what, _COMMANDS, _VARIABLES, (_COMMANDS["add"][1], "pull")
    )
    add = commands["add"]
    add.add_argument("url", help="https://..., hf://org/repo/file, urn:air:...")
    add.add_argument("--directory", help="folder under models/, such as loras")
    add.add_argument("--name", help="file name, if not the source's")
    add.add_argument("--optional", action="store_true", help="jobs do not wait for it")
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
        context = provision_context(self.settings, self.layout, meters_for(sys.stderr))
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
        good, what, problem = verify(spec, self._context.models, self._context.also)
        return Step({"model": str(spec.relative_path)}, what, there=good, problem=problem)


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
