"""Hugging Face: files are looked up with huggingface_hub and downloaded by us.

The library handles tokens, HF_ENDPOINT, HF_HUB_OFFLINE, revisions and gates; its own download
leaves an orphan when it is killed (since 1.18) and checks only the size. So it provides the file's
address, size and SHA-256, and the bytes are fetched by ranges, which any worker can resume.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bootstrap.core.files import read_regular
from bootstrap.core.redact import Secret
from bootstrap.models.download.remote import Remote, probe
from bootstrap.models.download.verify import Wanted
from bootstrap.models.sources import Description, HubFile, Link
from bootstrap.net import TRY_AGAIN, DownloadError, unreachable
from bootstrap.net.http import Channel, Credential, Reply, Words, explain

#: Where Runpod keeps an endpoint's cached models; local to the host.
CACHE_ON_VOLUME = Path("huggingface-cache/hub")
PLATFORM_CACHE = Path("/runpod-volume") / CACHE_ON_VOLUME
_MOST_REF = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SET_TOKEN = (
    "set HF_TOKEN in the endpoint's environment variables, made at "
    "https://huggingface.co/settings/tokens with read access"
)
_WORDS: Words = {
    401: (
        "download.login_needed",
        "Hugging Face requires a login, or does not know the token (401).",
        f"Check HF_TOKEN: {_SET_TOKEN}.",
    ),
    403: (
        "download.forbidden",
        "Hugging Face refuses this file to the token (403).",
        "Give the token read access to this repository, or to gated ones, in its settings.",
    ),
    404: ("download.not_found", "Hugging Face has no such file (404).", "Check the link."),
    410: ("download.gone", "The file was removed at Hugging Face (410).", "Find another one."),
    429: (
        "download.rate_limited",
        "Hugging Face reports too many requests (429).",
        f"Wait a few minutes; with a token the limit is higher: {_SET_TOKEN}.",
    ),
}


class HuggingFace:
    """`endpoint` None is HF_ENDPOINT, or huggingface.co."""

    name = "Hugging Face"

    def __init__(self, token: Secret | None = None, endpoint: str | None = None) -> None:
        self._token = token
        self._endpoint = endpoint

    def understands(self, link: Link) -> bool:
        """hf:// and links to files on huggingface.co."""
        return isinstance(link, HubFile)

    def host_of(self, link: Link) -> str:
        """The Hub's host; the file itself may come from its storage."""
        return urlsplit(self.endpoint).hostname or ""

    def credential_name(self, link: Link) -> str | None:
        """HF_TOKEN, when there is one."""
        return None if self._token is None else "HF_TOKEN"

    @property
    def endpoint(self) -> str:
        """The Hub's address in the library."""
        if self._endpoint is None:
            from huggingface_hub import constants

            self._endpoint = str(constants.ENDPOINT)
        return self._endpoint.rstrip("/")

    def locate(self, link: Link, revision: str | None, wanted: Wanted, channel: Channel) -> Remote:
        """Ask the Hub for the file, and its storage for range support."""
        assert isinstance(link, HubFile)
        found = self._metadata(link, revision)
        sha256 = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
        remote = Remote(
            found.location,
            f"hf:{link.repo_type}:{link.repo}/{link.path}@{found.commit_hash}",
            _explain,
            size=found.size,
            sha256=sha256,
            credential=self._credential(),
            text_is_fine=wanted.text_is_fine,
        )
        return probe(channel, remote)[0]

    def describe(self, link: Link, channel: Channel) -> Description:
        """Name, size, hash and the current commit, as a pin."""
        assert isinstance(link, HubFile)
        found = self._metadata(link, None)
        sha256 = found.etag if found.etag and _SHA256.fullmatch(found.etag) else None
        return Description(
            url=str(HubFile(link.repo, link.path, link.revision, link.repo_type)),
            name=link.path.rpartition("/")[2],
            directory=_folder_in(link.path),
            size=found.size,
            sha256=sha256,
            revision=found.commit_hash,
        )

    def cached(self, link: Link, revision: str | None, cache: Path = PLATFORM_CACHE) -> Path | None:
        """The file in the platform's cache, looked up without network; None if it is not there."""
        if not isinstance(link, HubFile) or not os.path.isdir(cache):
            return None
        return find_cached(link, revision or link.revision, cache)

    def _credential(self) -> Credential | None:
        if self._token is None:
            return None
        parts = urlsplit(self.endpoint)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        origin = (parts.scheme, parts.hostname, port)
        return Credential(
            "HF_TOKEN", self._token, lambda scheme, host, port: (scheme, host, port) == origin
        )

    def _metadata(self, link: HubFile, revision: str | None) -> Any:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        token = None if self._token is None else self._token.reveal()
        try:
            url = hf_hub_url(
                link.repo,
                link.path,
                repo_type=link.repo_type,
                revision=revision or link.revision,
                endpoint=self.endpoint,
            )
            return get_hf_file_metadata(url, token=token, timeout=30, endpoint=self.endpoint)
        except Exception as problem:  # noqa: BLE001 - the one edge to the library
            raise self._translate(problem, link) from None

    def _translate(self, problem: Exception, link: HubFile) -> DownloadError:
        """The library's exceptions as ours. Its GatedRepoError is a RepositoryNotFoundError, so it
        is checked first."""
        from huggingface_hub import errors

        page = f"{self.endpoint}/{link.repo}"
        if isinstance(problem, errors.OfflineModeIsEnabled):
            return DownloadError(
                "download.offline",
                "HF_HUB_OFFLINE is set, so Hugging Face is not contacted.",
                "Remove HF_HUB_OFFLINE, or put the file into its folder.",
            )
        if isinstance(problem, errors.GatedRepoError):
            return DownloadError(
                "download.gated",
                f"{link.repo} is gated: its terms must be accepted.",
                f"Open {page}, accept the terms, and {_SET_TOKEN}, from the same account.",
            )
        if isinstance(problem, errors.RevisionNotFoundError):
            return _missing(f"{link.repo} has no such revision", page)
        if isinstance(problem, errors.EntryNotFoundError):
            return _missing(f"{link.repo} has no file {link.path} in this revision", page)
        if isinstance(problem, errors.RepositoryNotFoundError):
            return _missing(
                f"there is no repository {link.repo}, or it is private", page, f", or {_SET_TOKEN}"
            )
        if isinstance(problem, errors.HfHubHTTPError):
            return _by_status(problem.response.status_code, page)
        if isinstance(problem, errors.HFValidationError):
            return _missing(f"{link.repo!r} is not a repository name", page)
        return unreachable(self.host_of(link), type(problem).__name__)


class HubHosts(Container[str]):
    """`host:port` of HF_ENDPOINT: the operator's mirror may be private. Looked up only if something
    would be refused otherwise, since the library takes long to import."""

    def __contains__(self, host_port: object) -> bool:
        from huggingface_hub import constants

        parts = urlsplit(str(constants.ENDPOINT))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return host_port == f"{parts.hostname}:{port}"


def find_cached(link: HubFile, revision: str | None, cache: Path) -> Path | None:
    """`link` in a Hugging Face cache folder. Runpod's has no `refs/main`: then the newest snapshot
    with the file counts, if no revision is requested."""
    folder = cache / ("--".join([f"{link.repo_type}s", *link.repo.split("/")]))
    try:
        file = folder / "refs" / (revision or "main")
        named = read_regular(file, _MOST_REF).decode("utf-8").strip()
    except (OSError, ValueError):
        named = revision or ""
    snapshots = folder / "snapshots"
    names = [named] if named else []
    if not revision:
        try:
            by_age = sorted(snapshots.iterdir(), key=lambda p: -p.stat().st_mtime)
        except OSError:
            by_age = []
        names += [path.name for path in by_age]
    for name in names:
        path = snapshots / name / link.path
        if os.path.isfile(path) and Path(path).resolve().is_relative_to(folder.resolve()):
            return path
    return None


def _explain(reply: Reply) -> DownloadError:
    return explain(reply, _WORDS)


def _missing(what: str, page: str, more: str = "") -> DownloadError:
    return DownloadError("download.not_found", f"{what} (404).", f"Look at {page}{more}.")


def _by_status(status: int, page: str) -> DownloadError:
    code, message, fix = _WORDS.get(
        status, ("download.http_status", f"Hugging Face answers {status} for {page}.", TRY_AGAIN)
    )
    transient = status in (408, 429) or status >= 500
    return DownloadError(code, message, fix, transient=transient, status=status)


def _folder_in(path: str) -> str | None:
    """Repositories made for ComfyUI have its folders: `split_files/vae/x.safetensors`."""
    from bootstrap.volume.categories import category_of

    for piece in reversed(path.split("/")[:-1]):
        if category_of(piece) is not None:
            return piece
    return None
