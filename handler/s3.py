"""Files -> an S3-compatible bucket: streamed from disk, checked when they are there; their URLs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bootstrap.config.bucket import Bucket
from bootstrap.net.addresses import AddressPolicy
from bootstrap.net.errors import DownloadError
from handler.deadline import Deadline

_MB = 1024 * 1024
_PART = 8 * _MB
_PARTS_AT_ONCE = 4
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and of silence
_ATTEMPTS = 3
_SAID = 200


class NotUploaded(Exception):
    """A file is not in the bucket. `str()` is the reason, without any secret."""


class _TooSlow(Exception):
    """The deadline came while bytes were sent."""


@dataclass(frozen=True)
class Upload:
    """A local file and where it goes."""

    local: Path
    key: str
    mime_type: str


class Store:
    """One bucket, for the time of one job. May be used by several threads."""

    def __init__(self, bucket: Bucket, policy: AddressPolicy, deadline: Deadline) -> None:
        self._bucket = bucket
        self._policy = policy
        self._deadline = deadline
        self._made: Any = None
        self._lock = threading.Lock()

    def put(self, upload: Upload) -> str:
        """Upload a file and ask the bucket for its size; its URL. Raises NotUploaded."""
        size = upload.local.stat().st_size
        try:
            client = self._client()
            self._send(client, upload)
            stored = client.head_object(Bucket=self._bucket.name, Key=upload.key)["ContentLength"]
        except Exception as problem:  # noqa: BLE001  # botocore's come from three hierarchies
            raise NotUploaded(self._explained(problem)) from None
        if stored != size:
            raise NotUploaded(f"the bucket has {stored} bytes of {upload.local.name}, not {size}")
        return self._url(client, upload.key)

    def _send(self, client: Any, upload: Upload) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=2 * _PART, multipart_chunksize=_PART, max_concurrency=_PARTS_AT_ONCE
        )
        client.upload_file(
            str(upload.local),
            self._bucket.name,
            upload.key,
            ExtraArgs={"ContentType": upload.mime_type},
            Callback=self._on_time(),
            Config=config,
        )

    def _on_time(self) -> Callable[[int], None]:
        def sent(_: int) -> None:
            if self._deadline.expired:
                raise _TooSlow

        return sent

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _make_client(self) -> Any:
        """The SDK's own session is not used: it would look for credentials of its own."""
        import boto3
        from botocore.config import Config

        bucket = self._bucket
        if not bucket.trusted:
            self._policy.target(bucket.endpoint)
        client = boto3.session.Session(
            aws_access_key_id=bucket.key_id.reveal(),
            aws_secret_access_key=bucket.secret.reveal(),
            region_name=bucket.region,
        ).client(
            "s3",
            endpoint_url=bucket.endpoint,
            config=Config(
                signature_version="s3v4",
                connect_timeout=_TIMEOUT[0],
                read_timeout=_TIMEOUT[1],
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                max_pool_connections=16,
                s3={"addressing_style": "virtual" if bucket.virtual_host else "path"},
                # Stores that are not Amazon's often don't know the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        if not bucket.trusted:
            from handler.s3_guard import guard

            guard(client, self._policy, _TIMEOUT)
        return client

    def _url(self, client: Any, key: str) -> str:
        bucket = self._bucket
        if bucket.public_url is not None:
            return f"{bucket.public_url}/{quote(key)}"
        where = {"Bucket": bucket.name, "Key": key}
        return str(client.generate_presigned_url("get_object", where, ExpiresIn=bucket.expiry))

    def _explained(self, problem: Exception) -> str:
        """In one line: what the store said, or how it could not be reached."""
        chain = list(_reasons(problem))
        for reason in chain:
            if isinstance(reason, _TooSlow):
                return f"{self._bucket.shown} took more than {self._deadline.seconds:.0f} s"
            if isinstance(reason, DownloadError):
                return self._without_secrets(reason.message)
            response = getattr(reason, "response", None)
            if isinstance(response, dict):
                error = response.get("Error", {})
                status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                said = f"{error.get('Code')}: {error.get('Message')}"
                return self._without_secrets(f"{self._bucket.shown} answered {status} ({said})")
        kind = type(chain[-1]).__name__
        return f"{self._bucket.shown} could not be reached ({kind})"

    def _without_secrets(self, text: str) -> str:
        for secret in (self._bucket.secret, self._bucket.key_id):
            text = text.replace(secret.reveal(), "***")
        return text[:_SAID]


def _reasons(problem: BaseException) -> Iterator[BaseException]:
    """A problem and what is behind it; botocore wraps in several ways."""
    seen: list[BaseException] = []
    inner: BaseException | None = problem
    while inner is not None and inner not in seen and len(seen) < 10:
        seen.append(inner)
        yield inner
        wrapped = getattr(inner, "kwargs", {}).get("error")
        inner = wrapped if isinstance(wrapped, BaseException) else None
        inner = inner or seen[-1].__cause__ or seen[-1].__context__
