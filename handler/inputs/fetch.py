"""Fetches a request's URLs: in parallel, limited in size and time, from public addresses only.

It uses the model downloads' guarded connection: a name is resolved once and the connection goes to
the checked address, at every redirect too; URL queries, which hold signatures, appear in no
message.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from bootstrap.config import Settings
from bootstrap.config.bucket import S3_CONFIG, Bucket
from bootstrap.net import AddressRefused, DownloadError, bad_answer
from bootstrap.net.addresses import AddressPolicy, shown, take_apart
from bootstrap.net.http import Channel, Reply
from handler.common.blocking import Pool, TimeUp, gather_all
from handler.common.errors import Deadline, JobError
from handler.request.fields import PUBLIC_FIX

_AT_ONCE = 4
_ATTEMPTS = 2
_SILENCE_SECONDS = 20.0
_BLOCK = 1024 * 1024
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_FIX_URL = (
    "Send a public https address that answers with the file itself, without a login; or send the "
    'file as "data".'
)

_FIX_S3 = "Check that the key is there, and that the bucket's credentials may read it."


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: source and destination."""

    url: str
    path: Path


class Fetcher:
    """Fetches for one job. All connections are aborted when the time is up or the job is cancelled,
    because a socket's timeout restarts with each byte."""

    def __init__(
        self,
        settings: Settings,
        deadline: Deadline,
        network: Pool,
        bucket: Bucket | None = None,
    ) -> None:
        """`bucket` has the credentials for `s3://` addresses."""
        self._bucket = bucket
        self._readable = settings.bucket_inputs
        self._max_mb = settings.max_input_mb
        self._timeout = settings.input_timeout
        self._deadline = self._limit = deadline
        self._policy = AddressPolicy(allow_private=settings.allow_private_urls)
        self._network = network
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    @property
    def most_bytes(self) -> float:
        """Limit in bytes for one file, or for the contents of one archive."""
        return self._max_mb * 1e6

    async def fetch(self, remote: Sequence[RemoteFile]) -> None:
        """Write every file. Raises JobError for the first that fails, and stops the others; OSError
        if a file cannot be written. INPUT_TIMEOUT starts now: the job may have waited for models
        before."""
        self._limit = Deadline(min(self._timeout, self._deadline.remaining))
        await gather_all(self._fetch_one(one) for one in remote)

    async def _fetch_one(self, remote: RemoteFile) -> None:
        _check_text(remote.url)
        async with self._at_once:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    await self._attempt(remote)
                    return
                except DownloadError as problem:
                    if self._limit.expired:
                        raise self._too_slow(remote) from None
                    if not (problem.transient and left):
                        raise _as_job_error(problem, remote.url) from None

    async def _attempt(self, remote: RemoteFile) -> None:
        limit = self._limit.remaining
        channel = Channel(self._policy_for(remote.url), min(_SILENCE_SECONDS, limit + 0.1))
        try:
            await self._network.run(lambda: self._take(channel, remote), limit, channel.abort)
        except TimeUp:
            raise self._too_slow(remote) from None

    def _take(self, channel: Channel, remote: RemoteFile) -> None:
        """Fetch it; nothing is left of a file that failed or was too late."""
        whole = False
        try:
            self._save(channel, remote)
            whole = not channel.aborted
        finally:
            channel.close()
            if not whole:
                remote.path.unlink(missing_ok=True)

    def _save(self, channel: Channel, remote: RemoteFile) -> None:
        in_bucket = is_s3(remote.url)
        reply = channel.get(self._signed(remote.url) if in_bucket else remote.url)
        if reply.status != 200:
            raise JobError(
                "input.not_fetched",
                f"{shown(remote.url)} answers with status {reply.status}.",
                _FIX_S3 if in_bucket else _FIX_URL,
                status=reply.status,
            )
        if reply.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise bad_answer(reply.host, "compresses the file though asked not to")
        if (reply.length or 0) > self._max_mb * 1e6:
            raise self._too_large(remote, f"{(reply.length or 0) / 1e6:.1f} MB")
        size = self._write(reply, remote)
        if reply.length is not None and size != reply.length:
            raise DownloadError("download.unreachable", _cut(size, reply), "", transient=True)

    def _policy_for(self, url: str) -> AddressPolicy:
        """The operator's own bucket may be anywhere."""
        if not is_s3(url) or self._bucket is None or not self._bucket.trusted:
            return self._policy
        target = take_apart(self._signed(url))
        return replace(self._policy, exempt=frozenset({f"{target.host}:{target.port}"}))

    def _signed(self, url: str) -> str:
        """The signed https address for an `s3://` one. Raises JobError."""
        name, _, key = url[len("s3://") :].partition("/")
        bucket = self._bucket
        if bucket is None:
            raise JobError(
                "input.bucket_refused",
                f"{shown(url)} is in a bucket, and none is configured for this endpoint.",
                f"Send {S3_CONFIG} with the job, or set the BUCKET_ variables and BUCKET_INPUTS in "
                "the endpoint's environment.",
            )
        if not BUCKET.fullmatch(name) or not key:
            raise JobError(
                "input.url_refused", f"{shown(url)} is not s3://bucket/key.", "Correct it."
            )
        if bucket.trusted and not _may_read(name, key, self._readable):
            raise JobError(
                "input.bucket_refused",
                f"{shown(url)} is not among what requests may read on this endpoint.",
                f"Add {name}, or {name}/ with a prefix, to BUCKET_INPUTS in the endpoint's "
                f"environment, or send {S3_CONFIG} with keys that may read it.",
            )
        return signed_url(replace(bucket, name=name), key, int(self._limit.seconds) + 60)

    def _write(self, reply: Reply, remote: RemoteFile) -> int:
        """Write the body to the file; returns its size in bytes."""
        size = 0
        with open(remote.path, "wb") as file:
            while block := reply.read_some(_BLOCK):
                size += len(block)
                if size > self._max_mb * 1e6:
                    raise self._too_large(remote, "more")
                if self._limit.expired:
                    raise self._too_slow(remote)
                file.write(block)
        return size

    def _too_large(self, remote: RemoteFile, size: str) -> JobError:
        return JobError(
            "input.too_large",
            f"{shown(remote.url)} has {size}; this worker fetches up to {self._max_mb:g} MB.",
            "Send a smaller file, raise MAX_INPUT_MB in the endpoint's environment, or put the "
            "file on the volume in ComfyUI/input/ and name it.",
        )

    def _too_slow(self, remote: RemoteFile) -> JobError:
        return JobError(
            "input.not_fetched",
            f"{shown(remote.url)} was not there within {self._limit.seconds:.0f} s.",
            "Use a faster server, or raise INPUT_TIMEOUT (and max_wait, which covers it) in the "
            "endpoint's environment.",
        )


def is_s3(url: str) -> bool:
    """Is it an address in a bucket?"""
    return url[:5].lower() == "s3://"


def _may_read(name: str, key: str, places: Sequence[str]) -> bool:
    if any(part in (".", "..") for part in key.split("/")):
        return False
    for place in places:
        allowed, _, prefix = place.partition("/")
        inside = not prefix or key.startswith(prefix.rstrip("/") + "/")
        if name == allowed and inside:
            return True
    return False


def signed_url(bucket: Bucket, key: str, seconds: int) -> str:
    """A signed URL for reading `key`, valid for so many seconds."""
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    parts = urlsplit(bucket.endpoint)
    if bucket.virtual_host:
        base = f"{parts.scheme}://{bucket.name}.{parts.netloc}"
    else:
        base = f"{bucket.endpoint.rstrip('/')}/{bucket.name}"
    request = AWSRequest("GET", f"{base}/{quote(key)}")
    credentials = Credentials(bucket.key_id.reveal(), bucket.secret.reveal())
    S3SigV4QueryAuth(credentials, "s3", bucket.region, seconds).add_auth(request)
    return str(request.url)


def _check_text(url: str) -> None:
    """JSON can contain half a character (a lone surrogate), which a URL cannot. Raises JobError."""
    try:
        url.encode()
    except UnicodeEncodeError:
        raise JobError(
            "input.url_refused",
            f"{shown(url)} holds half a character (a lone surrogate, U+D800 to U+DFFF).",
            _FIX_URL,
        ) from None


def _cut(size: int, reply: Reply) -> str:
    return f"the connection to {reply.host} was cut after {size} of {reply.length} bytes."


def _as_job_error(problem: DownloadError, url: str) -> JobError:
    if isinstance(problem, AddressRefused):
        return JobError("input.url_refused", problem.message, PUBLIC_FIX)
    return JobError("input.not_fetched", f"{shown(url)}: {problem.message}", _FIX_URL)
