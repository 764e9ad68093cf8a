"""Pure: one entry of a manifest, read with all its faults at once."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from bootstrap.core.findings import Fault, Severity
from bootstrap.core.redact import masked
from bootstrap.core.temp_files import LONGEST_NAME
from bootstrap.models.sources import BadLink, CivitaiFile, HubFile, Link, parse_link
from bootstrap.volume.categories import PICKLES, category_of, extension_of, known_folders

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_KNOWN = frozenset("name url directory hash hash_type size revision optional allow_pickle".split())
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def fault_of(name: str) -> str:
    """Why `name` cannot be a path component on every system; empty if it can."""
    if name in ("", ".", "..") or name != name.strip() or name.endswith("."):
        return f"is {name!r}, which is not a name"
    if found := _NOT_IN_NAMES.search(name):
        return f"is {name[:80]!r}, which holds {found.group()!r}"
    if name.startswith(".") or _DEVICES.fullmatch(name):
        return f"is {name[:80]!r}, which is hidden or reserved"
    try:
        length = len(unicodedata.normalize("NFC", name).encode())
    except UnicodeError:
        return f"is {name[:80]!r}, which is not valid text"
    if length > LONGEST_NAME:
        return f"has {length} bytes; {LONGEST_NAME} are the most"
    return ""


@dataclass(frozen=True)
class ModelSpec:
    """A listed model. `directory` is relative to the models folder, `sha256` lower case hex, `size`
    in bytes; `extra` has unknown fields, kept unchanged; `where` names the entry."""

    name: str
    url: str
    directory: str
    sha256: str | None = None
    size: int | None = None
    revision: str | None = None
    optional: bool = False
    allow_pickle: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def relative_path(self) -> PurePosixPath:
        """Where it belongs, relative to the models folder."""
        return PurePosixPath(self.directory, self.name)

    def as_entry(self) -> dict[str, Any]:
        """This as a manifest's entry, in ComfyUI's spelling."""
        entry: dict[str, Any] = {"name": self.name, "url": self.url, "directory": self.directory}
        if self.sha256 is not None:
            entry |= {"hash": self.sha256, "hash_type": "SHA256"}
        for name in ("size", "revision"):
            if getattr(self, name) is not None:
                entry[name] = getattr(self, name)
        for name in ("optional", "allow_pickle"):
            if getattr(self, name):
                entry[name] = True
        return {**entry, **self.extra}


class FieldFault(Fault):
    """What is wrong with one `field` of an entry. `fatal`: the entry is left out. `common`: only a
    warning in another author's workflow, where nodes may keep something else under `models`, or two
    name copies of one file."""

    def __init__(
        self,
        code: str,
        field: str,
        message: str,
        fix: str,
        *,
        fatal: bool = True,
        common: bool = False,
    ) -> None:
        super().__init__(code, message, fix, field=field)
        self.field = field
        self.fatal = fatal
        self.common = common

    def severity(self, lenient: bool) -> Severity:
        """An error if the entry is left out; `lenient` for another author's workflow."""
        is_error = self.fatal and not (lenient and self.common)
        return Severity.ERROR if is_error else Severity.WARNING


class PickleRefused(FieldFault):
    """A file that can run code, without the fields that allow it."""


def read_entry(
    entry: Any, where: str, allow_http: bool = False
) -> tuple[ModelSpec | None, list[FieldFault]]:
    """The entry as a spec, or None if it has a fatal fault; and all its faults."""
    if not isinstance(entry, Mapping):
        return None, [_field("", f"is {type(entry).__name__}, not an object", "Write {...}.")]
    reader = _Entry(entry, allow_http)
    spec = reader.spec(where)
    return (None if any(fault.fatal for fault in reader.faults) else spec), reader.faults


class _Entry:
    def __init__(self, entry: Mapping[Any, Any], allow_http: bool) -> None:
        self.entry = entry
        self.allow_http = allow_http
        self.faults: list[FieldFault] = []

    def spec(self, where: str) -> ModelSpec:
        url = self._text("url", needed=True) or ""
        link = self._link(url)
        name = self._name(self._text("name") or _name_in(link))
        directory = self._directory(self._text("directory", needed=True))
        spec = ModelSpec(
            name=name,
            url=url,
            directory=directory,
            sha256=self._hash(),
            size=self._size(),
            revision=self._text("revision"),
            optional=self._flag("optional"),
            allow_pickle=self._flag("allow_pickle"),
            extra={str(k): v for k, v in self.entry.items() if k not in _KNOWN},
            where=where,
        )
        if name and directory:
            self._check_kind(spec)
        return spec

    def _text(self, key: str, needed: bool = False) -> str | None:
        value = self.entry.get(key)
        if value is None or value == "":
            if needed:
                self._add(_field(key, f"`{key}` is missing", f"Add `{key}`."))
            return None
        if not isinstance(value, str):
            self._add(
                _field(key, f"`{key}` is {masked(repr(value)):.80}, not a text", "Put quotes.")
            )
            return None
        if any("\ud800" <= c <= "\udfff" for c in value):
            fix = "Write it in plain UTF-8, without half characters (\\ud83d and the like)."
            said = f"`{key}` is {value[:80]!r}, which is not valid text."
            is_name = key in ("name", "directory")
            code = "manifest.name" if is_name else "manifest.field"
            self._add(FieldFault(code, key, said, fix, common=not is_name))
            return None
        return value.strip()

    def _flag(self, key: str) -> bool:
        value = self.entry.get(key, False)
        if not isinstance(value, bool):
            fix = "Write true or false, without quotes."
            self._add(_field(key, f"`{key}` is {value!r:.80}", fix))
            return False
        return value

    def _size(self) -> int | None:
        value = self.entry.get("size")
        if value is None:
            return None
        if type(value) is not int or not 0 < value < 2**63:
            fix = "Write the size in bytes as a whole number, or leave it out."
            self._add(_field("size", f"`size` is {value!r:.80}", fix))
            return None
        return value

    def _hash(self) -> str | None:
        value = self._text("hash")
        if value is None:
            return None
        kind = (self._text("hash_type") or "SHA256").upper().replace("-", "").replace("_", "")
        if kind != "SHA256":
            self._add(
                FieldFault(
                    "manifest.hash_type",
                    "hash_type",
                    f"`hash_type` is {kind}, which is not checked here; SHA256 is.",
                    "Give the SHA-256 as `hash`; `sha256sum FILE` prints it.",
                    fatal=False,
                )
            )
            return None
        value = value.removeprefix("sha256:")
        if not _SHA256.fullmatch(value):
            fix = "Give all 64 hexadecimal digits, or leave `hash` out."
            self._add(_field("hash", f"`hash` is {value[:80]!r}, no SHA-256", fix))
            return None
        return value.lower()

    def _link(self, url: str) -> Link | None:
        if not url:
            return None
        try:
            link = parse_link(url)
        except BadLink as problem:
            self._add(_url(f"the URL {problem}", "Correct `url`."))
            return None
        if isinstance(link, CivitaiFile) and link.version is None:
            fix = "Choose a version on the page and copy that address (`?modelVersionId=...`)."
            self._add(_url("the URL names a Civitai model but no version", fix))
        if urlsplit(url).scheme == "http" and not self.allow_http:
            fix = "Use https; for a server of your own set ALLOW_PRIVATE_DOWNLOAD_URLS=true."
            self._add(_url("the URL is plain http", fix))
        return link

    def _name(self, name: str) -> str:
        if not name:
            why = "`name` is missing and cannot be taken from the URL"
            self._add(_field("name", why, "Add `name`."))
            return ""
        if problem := fault_of(name):
            fix = "Give the file's plain name, such as `model.safetensors`."
            self._add(FieldFault("manifest.name", "name", f"`name` {problem}.", fix))
            return ""
        return unicodedata.normalize("NFC", name)

    def _directory(self, directory: str | None) -> str:
        if directory is None:
            return ""
        pieces = unicodedata.normalize("NFC", directory).strip("/").split("/")
        problems = [problem for piece in pieces if (problem := fault_of(piece))]
        if problems or directory.startswith("/"):
            why = problems[0] if problems else "starts with a slash"
            fix = "Give a folder under models/, such as `loras` or `loras/flux`."
            self._add(FieldFault("manifest.name", "directory", f"`directory` {why}.", fix))
            return ""
        return "/".join(pieces)

    def _check_kind(self, spec: ModelSpec) -> None:
        folder = spec.relative_path.parts[0]
        category = category_of(folder)
        if category is None:
            near = difflib.get_close_matches(folder, known_folders(), 1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            message = f"ComfyUI itself reads no folder `{folder}`; a custom node may."
            fix = f"{hint}ComfyUI's own are: {', '.join(known_folders())}."
            self._add(FieldFault("manifest.unknown_folder", "directory", message, fix, fatal=False))
        elif not category.accepts(spec.name):
            message = f"ComfyUI does not list {spec.name} in {folder}: its kind is not read there."
            fix = "Check `name` and `directory`."
            self._add(FieldFault("manifest.extension", "name", message, fix, fatal=False))
        if extension_of(spec.name) in PICKLES and not (spec.allow_pickle and spec.sha256):
            self._add(_pickle(spec))

    def _add(self, fault: FieldFault) -> None:
        self.faults.append(fault)


def _name_in(link: Link | None) -> str:
    if isinstance(link, HubFile):
        return link.path.rpartition("/")[2]
    return "" if link is None or isinstance(link, CivitaiFile) else link.name


def _field(key: str, message: str, fix: str) -> FieldFault:
    return FieldFault("manifest.field", key, f"{message}.", fix, common=True)


def _url(message: str, fix: str) -> FieldFault:
    return FieldFault("manifest.url", "url", f"{message}.", fix)


def _pickle(spec: ModelSpec) -> PickleRefused:
    return PickleRefused(
        "manifest.pickle",
        "allow_pickle",
        f"{spec.name} can run code when it is loaded; such files need `allow_pickle: true` and a "
        "SHA-256 in `hash`.",
        "Prefer a .safetensors of the same model; else add both fields if you trust the source.",
    )
