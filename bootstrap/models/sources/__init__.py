"""Where models come from: links as people paste them, and their sources.

A source turns a link into a `Remote`, with its credential and explanations of its refusals;
fetching is the same for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from bootstrap.net import DownloadError

if TYPE_CHECKING:  # the checker reads manifests, and must not load what downloads need
    from bootstrap.models.download.remote import Remote
    from bootstrap.models.download.verify import Wanted
    from bootstrap.net.http import Channel

__all__ = [
    "BadLink",
    "Description",
    "HubFile",
    "Link",
    "Sources",
    "WebFile",
    "civitai",
    "host_of",
    "https",
    "huggingface",
    "looks_like_link",
    "parse_link",
]


@dataclass(frozen=True)
class Description:
    """A source's description of a file. `directory` None: it does not know the folder."""

    url: str
    name: str
    directory: str | None
    size: int | None
    sha256: str | None
    revision: str | None = None


class Source(Protocol):
    """One kind of server. All methods raise DownloadError."""

    name: str

    def understands(self, link: Link) -> bool:
        """Is this link one of mine?"""
        ...

    def host_of(self, link: Link) -> str:
        """The host that will be asked, for plans."""
        ...

    def credential_name(self, link: Link) -> str | None:
        """The variable whose token that host will get, if any."""
        ...

    def locate(self, link: Link, revision: str | None, wanted: Wanted, channel: Channel) -> Remote:
        """Ask the server where the file is now."""
        ...

    def describe(self, link: Link, channel: Channel) -> Description:
        """The manifest entry for `link`."""
        ...


@dataclass(frozen=True)
class Sources:
    """All sources, the most specific first."""

    sources: tuple[Source, ...]

    def source_of(self, url: str) -> tuple[Source, Link]:
        """The source for `url`. Raises DownloadError."""
        try:
            link = parse_link(url)
        except BadLink as problem:
            raise DownloadError(
                "download.no_source",
                f"the URL {problem}.",
                "Give an https URL, hf://org/repo/file@revision or urn:air:...:civitai:...@...",
            ) from None
        for source in self.sources:
            if source.understands(link):
                return source, link
        raise DownloadError(
            "download.no_source", "no source fetches this URL.", "Use an https URL."
        )


def make_sources(settings: Any) -> Sources:
    """The sources with the credentials in `Settings`."""
    from bootstrap.models.sources.civitai import Civitai
    from bootstrap.models.sources.https import Https
    from bootstrap.models.sources.huggingface import HuggingFace

    return Sources(
        (
            HuggingFace(settings.hf_token),
            Civitai(settings.civitai_token),
            Https(settings.download_token, settings.download_token_host),
        )
    )


_REPO_KINDS = {"datasets": "dataset", "spaces": "space"}
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
# These serve the API and the models' pages. Their subdomains (b2.civitai.com, image.civitai.com)
# are storage: plain servers, which get no token.
CIVITAI_HOSTS = {
    "civitai.com": "civitai.com",
    "www.civitai.com": "civitai.com",
    "civitai.red": "civitai.red",
    "www.civitai.red": "civitai.red",
}
_AIR = re.compile(
    r"(?:urn:)?(?:air:)?(?:(?P<base>[\w.-]+):)?(?P<type>[\w.-]+):civitai:"
    r"(?P<model>\d{1,18})@(?P<version>\d{1,18})(?:\.(?P<format>\w+))?",
    re.IGNORECASE,
)
_FILE_CHOICE = ("type", "format", "size", "fp", "quantType", "fileId")


class BadLink(ValueError):
    """The URL cannot be understood; the text completes "the URL ..."."""


@dataclass(frozen=True)
class HubFile:
    """A file in a Hugging Face repository. `revision` None is `main`."""

    repo: str
    path: str
    revision: str | None = None
    repo_type: str = "model"

    def __str__(self) -> str:
        kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        pin = f"@{self.revision}" if self.revision else ""
        return f"hf://{kind}{self.repo}/{self.path}{pin}"


@dataclass(frozen=True)
class CivitaiFile:
    """A file of a Civitai model version. `choice` are the query fields that pick one of several
    files; `version` None: the link names only a model. `host` is the site to ask: civitai.com does
    not have everything that civitai.red has."""

    version: int | None
    model: int | None = None
    choice: tuple[tuple[str, str], ...] = ()
    host: str = "civitai.com"

    @property
    def query(self) -> str:
        return urlencode(self.choice)

    def __str__(self) -> str:
        return f"https://{self.host}/api/download/models/{self.version}" + (
            f"?{self.query}" if self.choice else ""
        )


@dataclass(frozen=True)
class WebFile:
    """A file on a plain server."""

    url: str

    @property
    def name(self) -> str:
        """The last part of the path; may be empty."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


Link = HubFile | CivitaiFile | WebFile


def looks_like_link(text: str) -> bool:
    """Is it meant as a model's address, whether or not it leads to one?"""
    return text[:8].lower().startswith(("http://", "https://", "hf://", "urn:air:", "air:"))


def host_of(link: Link) -> str:
    """The host of a link's content: the Hub and Civitai by their public names."""
    if isinstance(link, HubFile):
        return _HUB_HOSTS[0]
    return link.host if isinstance(link, CivitaiFile) else _host_in(link.url)


def identity_of(link: Link) -> str:
    """One string for all spellings of a link: page, download address and AIR of one file."""
    if isinstance(link, CivitaiFile):
        which = f"version/{link.version}" if link.version is not None else f"model/{link.model}"
        return f"civitai:{link.host}/{which}?{link.query}"
    return link.url if isinstance(link, WebFile) else str(link)


def parse_link(url: str) -> Link:
    """What `url` points at. Raises BadLink if it cannot be fetched."""
    if not url or any(c <= " " or c in "\x7f\\" or "\ud800" <= c <= "\udfff" for c in url):
        raise BadLink("is empty, or holds white space, control characters, backslashes or bytes")
    if match := _AIR.fullmatch(url):
        choice = (("format", match["format"]),) if match["format"] else ()
        return CivitaiFile(int(match["version"]), int(match["model"]), choice)
    if url.lower().startswith(("urn:", "air:")):
        raise BadLink(
            "is not a Civitai AIR with a version (urn:air:sdxl:lora:civitai:<model>@<version>)"
        )
    try:
        parts = urlsplit(url)
        host, login = (parts.hostname or "").lower(), parts.username or parts.password
        _ = parts.port
    except ValueError:
        raise BadLink("is malformed") from None
    if parts.scheme == "hf":
        return _hub_uri(url)
    if parts.scheme not in ("https", "http") or not host:
        raise BadLink("is none of https://..., hf://org/repo/file, urn:air:...:civitai:...@...")
    if login is not None:
        raise BadLink("carries a login; use DOWNLOAD_TOKEN and DOWNLOAD_TOKEN_HOST instead")
    if host in _HUB_HOSTS:
        return _hub_url(url, parts.path)
    if host in CIVITAI_HOSTS:
        return _civitai_url(CIVITAI_HOSTS[host], parts.path, parts.query)
    return WebFile(url)


def _host_in(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _hub_uri(url: str) -> HubFile:
    path, at, revision = url[len("hf://") :].rpartition("@")
    if not at or ("/" in revision and "/" not in path):
        path, revision = url[len("hf://") :], ""
    parts = [unquote(part) for part in path.split("/")]
    repo_type = _REPO_KINDS.get(parts[0], "model")
    if repo_type != "model":
        parts = parts[1:]
    return _hub_file(url, parts[:2], parts[2:], revision or None, repo_type)


def _hub_url(url: str, path: str) -> Link:
    parts = [unquote(part) for part in path.split("/")[1:]]
    repo_type = _REPO_KINDS.get(parts[0], "model")
    if repo_type != "model":
        parts = parts[1:]
    for index in (2, 1):  # `org/repo`, or the old repositories without an organisation
        if len(parts) > index + 2 and parts[index] in ("resolve", "blob", "raw"):
            revision = parts[index + 1]
            rest = parts[index + 2 :]
            return _hub_file(url, parts[:index], rest, _pin(revision), repo_type)
    raise BadLink(
        "points at a Hugging Face page, not at a file; copy the link of the file's download "
        "button (it holds /resolve/)"
    )


def _hub_file(
    url: str, repo: list[str], path: list[str], revision: str | None, repo_type: str
) -> HubFile:
    pieces = [*repo, *path]
    if not repo or not path or any(piece in ("", ".", "..") for piece in pieces):
        raise BadLink("names no file in a repository (hf://org/repo/path/to/file@revision)")
    return HubFile("/".join(repo), "/".join(path), revision, repo_type)


def _pin(revision: str) -> str | None:
    return None if revision == "main" else revision


def _civitai_url(host: str, path: str, query: str) -> CivitaiFile:
    fields = dict(parse_qsl(query))
    choice = tuple((key, fields[key]) for key in _FILE_CHOICE if key in fields)
    if "fileId" in fields:  # says all
        choice = (("fileId", fields["fileId"]),)
    version = fields.get("modelVersionId", "")
    match [piece for piece in path.split("/") if piece]:
        case ["api", "download", "models", number] if _id(number):
            return CivitaiFile(int(number), None, choice, host)
        case ["models", number, *_] if _id(number):
            return CivitaiFile(int(version) if _id(version) else None, int(number), choice, host)
        case ["model-versions", number] if _id(number):
            return CivitaiFile(int(number), None, choice, host)
    raise BadLink("points at a Civitai page that is not a model's; copy the link of its page")


def _id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19
