"""Plain servers: public files, signed URLs, and one host with a bearer token."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote, urlsplit

from bootstrap.core.redact import Secret
from bootstrap.models.download.remote import Remote, probe
from bootstrap.models.download.verify import Wanted
from bootstrap.models.sources import Description, Link, WebFile
from bootstrap.net.addresses import take_apart
from bootstrap.net.http import Channel, Credential, Reply, explain

_SCHEMES = frozenset({"https"})
_FILE_NAME = re.compile(r"""filename\*?=(?:UTF-8'')?"?([^";]+)"?""", re.IGNORECASE)


class Https:
    """`host` (`name` or `name:port`) gets `token`, by https only."""

    name = "https"

    def __init__(self, token: Secret | None = None, host: str | None = None) -> None:
        self.credential: Credential | None = None
        if token is not None and host is not None:
            wanted = host if ":" in host else f"{host}:443"
            self.credential = Credential(
                "DOWNLOAD_TOKEN",
                token,
                lambda scheme, name, port: scheme in _SCHEMES and f"{name}:{port}" == wanted,
            )

    def understands(self, link: Link) -> bool:
        """Any URL."""
        return isinstance(link, WebFile)

    def host_of(self, link: Link) -> str:
        """The URL's host."""
        assert isinstance(link, WebFile)
        return urlsplit(link.url).hostname or ""

    def credential_name(self, link: Link) -> str | None:
        """DOWNLOAD_TOKEN, for its host."""
        assert isinstance(link, WebFile)
        target = take_apart(link.url)
        if self.credential is None or not self.credential.belongs_to(*target.origin):
            return None
        return self.credential.name

    def locate(self, link: Link, revision: str | None, wanted: Wanted, channel: Channel) -> Remote:
        """Probe the URL, following redirects."""
        return self._probe(link, wanted.text_is_fine, channel)[0]

    def describe(self, link: Link, channel: Channel) -> Description:
        """Name and size; a plain server has no hash."""
        assert isinstance(link, WebFile)
        remote, reply = self._probe(link, False, channel)
        return Description(link.url, given_name(reply) or link.name, None, remote.size, None)

    def _probe(self, link: Link, text_is_fine: bool, channel: Channel) -> tuple[Remote, Reply]:
        assert isinstance(link, WebFile)
        identity = "url:" + hashlib.sha256(link.url.encode("utf-8", "replace")).hexdigest()
        return probe(
            channel,
            Remote(
                link.url,
                identity,
                explain,
                credential=self.credential,
                text_is_fine=text_is_fine,
            ),
        )


def given_name(reply: Reply) -> str:
    """The file name of a Content-Disposition, its last path component; may be empty."""
    match = _FILE_NAME.search(reply.headers.get("content-disposition", ""))
    name = unquote(match.group(1)).strip() if match else ""
    return name.replace("\\", "/").rpartition("/")[2]
