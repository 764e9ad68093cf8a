"""Puts a job's input files into ComfyUI's input folder, under names unique to the job."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from bootstrap.core.archive import ArchiveTooLarge, BadArchive, Limits, unpack
from bootstrap.net.addresses import shown
from handler.common.blocking import Pool
from handler.common.errors import Deadline, JobError, nearest
from handler.common.media_types import HEAD_BYTES, extension_for, wrong_content
from handler.inputs.fetch import Fetcher, RemoteFile
from handler.inputs.volume_cache import ROOM_FIX, VolumeInputs
from handler.request.fields import InputFile, filename_in
from handler.request.references import (
    is_folder_input,
    named_files,
    reference_in,
    rename_files,
    rename_folders,
    rename_named_files,
    substitute_urls,
    urls_to_load,
    wanted_files,
)
from handler.request.workflow import Workflow

T = TypeVar("T")
_LISTED = 2000
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)


class JobInputs:
    """The input files of one job. Their names contain its unique tag, so that a reused name never
    shows an older picture. Copies from the volume are shared with other jobs."""

    def __init__(
        self, folder: Path, job_tag: str, fetcher: Fetcher, shared: VolumeInputs, local: Pool
    ) -> None:
        self._folder = folder
        self._job_tag = job_tag
        self._fetcher = fetcher
        self._shared = shared
        self._local = local
        self._written: list[Path] = []
        self._folders: list[Path] = []
        self._ended = False

    @staticmethod
    def has_files(files: Sequence[InputFile], workflow: Workflow) -> bool:
        """Are there any files to place, or to look for?"""
        named = chain(urls_to_load(workflow), named_files(workflow))
        return bool(files) or any(True for _ in named)

    async def materialize(
        self, files: Sequence[InputFile], workflow: Workflow, deadline: Deadline
    ) -> None:
        """Write `files` and what loaders' URLs lead to, make `workflow` refer to them, and copy
        other files that it names from the volume. Everything is decoded before the first is
        written. Raises JobError for invalid base64, URLs that cannot be fetched and wrong content,
        and TimeUp. `remove` must still be called then.
        """
        names = await self._run(lambda: self._write_all(files), deadline)
        remote = [(file.reference, file) for file in files if file.url is not None]
        in_loaders = urls_to_load(workflow)
        remote += [(url, InputFile(filename_in(url), url=url)) for url in in_loaders]
        if remote:
            names |= await self._fetch(remote, deadline)
        unpacked = await self._run(lambda: self._unpacked(files, names), deadline)
        plain = {name: found for name, found in unpacked.plain.items() if name not in names}
        names = {**unpacked.by_reference, **names, **unpacked.folders}
        substitute_urls(workflow, {url: names.pop(url) for url in in_loaders})
        rename_folders(workflow, {f.reference: names.pop(f.reference) for f in files if f.unpack})
        rename_files(workflow, names)
        rename_named_files(workflow, plain)
        await self._shared.ensure_copies(workflow, self._job_tag, deadline)

    def remove(self) -> None:
        """Delete the job's own input files. Blocks, on local disk."""
        self._ended = True
        for file in list(self._written):
            with suppress(OSError):  # a node may have put a folder there
                file.unlink()
        for folder in list(self._folders):
            shutil.rmtree(folder, ignore_errors=True)
        self._shared.release(self._job_tag)

    async def _run(self, work: Callable[[], T], deadline: Deadline) -> T:
        """Run `work`, which writes files: those that it writes after the job has ended are removed
        too."""

        def tidied() -> T:
            try:
                return work()
            finally:
                if self._ended:
                    self.remove()

        return await self._local.run(tidied, deadline.remaining)

    def _unpacked(self, files: Sequence[InputFile], names: Mapping[str, str]) -> _Unpacked:
        """Unpack archives; of two with the same name in them, the later one counts."""
        found = _Unpacked()
        for file in files:
            if file.unpack and not self._ended:
                self._unpack(file, self._folder / names[file.reference], found)
        return found

    def _unpack(self, file: InputFile, archive: Path, found: _Unpacked) -> None:
        folder = archive.with_name(f"{archive.stem}-files")
        self._folders.append(folder)
        try:
            inside = unpack(archive, folder, Limits(self._fetcher.most_bytes)).names
        except BadArchive as problem:
            raise _not_unpacked(file.name, problem) from None
        except OSError as problem:
            raise _not_stored(file.name, folder, problem) from None
        archive.unlink(missing_ok=True)
        place = str(folder.relative_to(self._folder))
        found.folders[file.reference] = place
        for name in inside:
            found.plain[name] = found.by_reference[f"{file.reference}/{name}"] = f"{place}/{name}"

    def _write_all(self, files: Sequence[InputFile]) -> dict[str, str]:
        """Write the request's files; returns ComfyUI's names for them."""
        decoded = [(file, _decode(file)) for file in files if file.data is not None]
        return {file.reference: self._write(file, content) for file, content in decoded}

    def _write(self, file: InputFile, content: bytes) -> str:
        """Write it; returns its name relative to the input folder."""
        _check_content(content[:HEAD_BYTES], file.name, f"Image {file.name!r}")
        path = self._path_for(file, _tagged(file.name, self._job_tag))
        try:
            path.write_bytes(content)
        except OSError as problem:
            raise _not_stored(file.name, self._folder, problem) from None
        return str(path.relative_to(self._folder))

    async def _fetch(
        self, remote: Sequence[tuple[str, InputFile]], deadline: Deadline
    ) -> dict[str, str]:
        """Fetch (key, file) pairs; returns ComfyUI's names for them."""
        wanted: dict[str, tuple[RemoteFile, InputFile]] = {}

        def prepare() -> None:
            for number, (key, file) in enumerate(remote, 1):
                # URLs often end in the same name (…/1/image.png, …/2/image.png): a number
                # distinguishes them.
                name = _tagged(file.name, f"{self._job_tag}-{number}")
                wanted[key] = (RemoteFile(file.url or "", self._path_for(file, name)), file)

        await self._run(prepare, deadline)
        try:
            await self._fetcher.fetch([one for one, _ in wanted.values()])
        except OSError as problem:
            raise _not_stored("from a URL", self._folder, problem) from None

        def fetched() -> dict[str, str]:
            return {key: self._fetched(one, file) for key, (one, file) in wanted.items()}

        return await self._run(fetched, deadline)

    def _fetched(self, wanted: RemoteFile, file: InputFile) -> str:
        """Check that its content matches its name; without an extension it gets that of its
        content."""
        with open(wanted.path, "rb") as opened:
            head = opened.read(HEAD_BYTES)
        if not head:
            raise JobError("image.no_data", f"{shown(wanted.url)} is empty.", "Send another file.")
        _check_content(head, file.name, shown(wanted.url))
        path = wanted.path
        if not path.suffix:
            path = self._remember(path.with_name(path.name + extension_for(head)))
            os.rename(wanted.path, path)
        return str(path.relative_to(self._folder))

    def _path_for(self, file: InputFile, name: str) -> Path:
        folder = self._folder / file.subfolder
        try:
            os.fsencode(folder / name)
        except UnicodeEncodeError:
            raise _not_encodable(file.name) from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise _not_stored(file.name, folder, problem) from None
        return self._remember(folder / name)

    def _remember(self, path: Path) -> Path:
        self._written.append(path)
        return path


@dataclass
class _Unpacked:
    """The contents of a request's archives, by the names that a workflow may use: the archive's
    own, `archive/file`, and just `file`."""

    folders: dict[str, str] = field(default_factory=dict)
    by_reference: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)


def missing_inputs(workflow: Workflow, folder: Path, volume_input: Path) -> list[JobError]:
    """An error for each file or folder that a loader reads and that is not in ComfyUI's input
    folder."""
    there: list[str] | None = None
    problems: list[JobError] = []
    for file in wanted_files(workflow):
        path = reference_in(file.text)[0]
        is_there = os.path.isdir if is_folder_input(file.input) else os.path.isfile
        if is_there(folder / path):
            continue
        if there is None:
            there = _names_in(volume_input)
        close = nearest(path, there)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        problems.append(
            JobError(
                "input.missing",
                f"{file.where} names {path[:100]!r}, which was not sent and is not in "
                f"{volume_input}{hint}.",
                'Send it in "images" or "files" under that name, or put it there on the volume.',
                **file.details,
                nearest=close,
            )
        )
    return problems


def _names_in(folder: Path) -> list[str]:
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        entries = [*names, *folders]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in entries]
        if len(found) >= _LISTED:
            break
    return [name for name in found if not any(unicodedata.category(c) == "Cs" for c in name)]


def _decode(file: InputFile) -> bytes:
    data = file.data or ""
    head = _DATA_URI.match(data[:200])
    text = re.sub(r"\s+", "", data[head.end() :] if head else data)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise JobError(
            "image.bad_base64",
            f"Image {file.name!r} is not valid base64: {problem}.",
            "Encode the file's bytes with standard base64; a data URI head "
            "(data:image/png;base64,) may stand before it.",
        ) from None
    if not content:
        raise JobError("image.no_data", f"Image {file.name!r} is empty.", "Send its content.")
    return content


def _check_content(head: bytes, name: str, shown_as: str) -> None:
    found = wrong_content(head, name)
    if found is not None:
        raise JobError(
            "input.wrong_content",
            f"{shown_as} is {found}, not what a file called {name} holds.",
            "Send the file itself: not a page about it, not a path, and not encoded twice.",
            found=found,
        )


def _tagged(name: str, job_tag: str) -> str:
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{job_tag}{suffix}"


def _not_encodable(name: str) -> JobError:
    return JobError(
        "image.bad_name",
        f"The name {name!a} cannot be written in this worker's file name encoding, "
        f"{sys.getfilesystemencoding()}.",
        "Use a name of ASCII characters, or remove PYTHONUTF8=0 and the locale (LC_ALL, LANG) from "
        "the endpoint's environment.",
    )


def _not_stored(name: str, folder: Path, problem: OSError) -> JobError:
    return JobError(
        "image.not_stored",
        f"Image {name} could not be written to {folder}: {problem.strerror}.",
        ROOM_FIX,
    )


def _not_unpacked(name: str, problem: BadArchive) -> JobError:
    if isinstance(problem, ArchiveTooLarge):
        fix = "Send less, or raise MAX_INPUT_MB in the endpoint's environment."
        return JobError("input.too_large", f"The archive {name!r} {problem}.", fix)
    fix = "Send a plain zip of the files themselves: no links, no passwords, names without `..`."
    return JobError("input.bad_archive", f"The archive {name!r} {problem}.", fix)
