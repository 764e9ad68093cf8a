"""What every source is, which of them fetches a link, and what it says about the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bootstrap.models.download.remote import Remote
from bootstrap.models.download.verify import Wanted
from bootstrap.models.sources.links import BadLink, Link, parse_link
from bootstrap.net.errors import DownloadError
from bootstrap.net.http import Channel


@dataclass(frozen=True)
class Description:
    """What a source says about a file. `directory` None: it cannot know the folder."""

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
        """The name of the variable whose token will be shown to that host, if any."""
        ...

    def locate(self, link: Link, revision: str | None, wanted: Wanted, channel: Channel) -> Remote:
        """Where the file is now, asked from the server."""
        ...

    def describe(self, link: Link, channel: Channel) -> Description:
        """What a manifest entry for `link` should say."""
        ...


@dataclass(frozen=True)
class Sources:
    """All sources, the most particular first."""

    sources: tuple[Source, ...]

    def source_of(self, url: str) -> tuple[Source, Link]:
        """Who fetches `url`. Raises DownloadError."""
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
        raise DownloadError("download.no_source", "nobody fetches this URL.", "Use an https URL.")


def make_sources(settings: Any) -> Sources:
    """The sources with the credentials that `Settings` hold."""
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
