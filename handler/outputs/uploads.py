"""Uploads files to an S3-compatible bucket or presigned addresses, streamed from disk.

boto3 uses our own connections, which can be aborted: botocore's timeouts restart with each byte, so
a bucket that sends a byte a second could hold an upload for hours. A request's bucket is reached
only over connections to checked addresses, so DNS rebinding has no effect.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from bootstrap.config.bucket import Bucket
from bootstrap.core.files import open_regular
from bootstrap.net import DownloadError
from bootstrap.net.addresses import AddressPolicy, Connections, Target, shown, without_query
from bootstrap.net.http import Channel
from handler.common.errors import Deadline
from handler.request.fields import PutAddress

_MB = 1024 * 1024
_PART = 8 * _MB
_IN_PARTS = 2 * _PART  # for files of so many bytes or more
_PARTS_AT_ONCE = 4
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and without data
_ATTEMPTS = 3
_SAID = 200
_SILENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.5


class NotUploaded(Exception):
    """A file was not uploaded. `str()` is the reason, without secrets."""


class _TooSlow(Exception):
    """The deadline came while bytes were sent."""


@dataclass(frozen=True)
class Upload:
    """A local file and its destination."""

    local: Path
    key: str
    mime_type: str


class BucketUploader:
    """One bucket, for one job. Thread-safe."""

    def __init__(self, bucket: Bucket, policy: AddressPolicy, deadline: Deadline) -> None:
        self._bucket = bucket
        self._policy = policy
        self._deadline = deadline
        self._made: Any = None
        self._lock = threading.Lock()
        # The operator's own bucket may be anywhere.
        self._connections = Connections(AddressPolicy(True) if bucket.trusted else policy)

    @property
    def too_slow(self) -> str:
        """The reason for an abandoned upload."""
        return f"{self._bucket.shown} took more than {self._deadline.seconds:.0f} s"

    def abort(self) -> None:
        """Close all connections and allow no new ones: uploads that wait for the bucket fail."""
        self._connections.abort()

    def close(self) -> None:
        """Every upload has ended."""
        self._connections.close()
        if self._made is not None:
            self._made.close()

    def put(self, upload: Upload) -> str:
        """Upload a file and check its size in the bucket; returns its URL. Raises NotUploaded."""
        try:
            with open_regular(upload.local) as file:
                size = os.fstat(file.fileno()).st_size
                client = self._client()
                self._send(client, upload, file, size)
            stored = self._stored_size(client, upload.key)
        except Exception as problem:  # noqa: BLE001  # botocore's come from three hierarchies
            raise NotUploaded(self._explained(problem)) from None
        if stored not in (size, None):
            raise NotUploaded(f"the bucket has {stored} bytes of {upload.local.name}, not {size}")
        return self._url(client, upload.key)

    def _stored_size(self, client: Any, key: str) -> int | None:
        """What the bucket has; None if these credentials may only write, which is enough where
        results are read at a public address: the store has confirmed all that was sent, since an
        upload that it refuses or that ends early raises in `_send`."""
        try:
            return int(client.head_object(Bucket=self._bucket.name, Key=key)["ContentLength"])
        except client.exceptions.ClientError as problem:
            status = problem.response["ResponseMetadata"]["HTTPStatusCode"]
            if self._bucket.public_url is None or status != 403:
                raise
            return None

    def _send(self, client: Any, upload: Upload, file: BinaryIO, size: int) -> None:
        where = {"Bucket": self._bucket.name, "Key": upload.key}
        about = {"ContentType": upload.mime_type}
        if size < _IN_PARTS:
            client.put_object(Body=file, **where, **about)
            return
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=_IN_PARTS, multipart_chunksize=_PART, max_concurrency=_PARTS_AT_ONCE
        )
        # By its descriptor, which is known to be a regular file.
        client.upload_file(
            f"/proc/self/fd/{file.fileno()}",
            where["Bucket"],
            where["Key"],
            ExtraArgs=about,
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
        """Not the SDK's own session, which would look for its own credentials."""
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
                # Stores other than Amazon's often do not support the newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        if bucket.trusted:
            _use(client._endpoint.http_session, self._connections)
        else:
            _guard(client, self._policy, self._connections)
        return client

    def _url(self, client: Any, key: str) -> str:
        bucket = self._bucket
        if bucket.public_url is not None:
            return f"{bucket.public_url}/{quote(key)}"
        where = {"Bucket": bucket.name, "Key": key}
        return str(client.generate_presigned_url("get_object", where, ExpiresIn=bucket.expiry))

    def _explained(self, problem: Exception) -> str:
        """In one line: the store's message, or why it could not be reached."""
        if self._connections.aborted:
            return self.too_slow
        chain = list(_reasons(problem))
        for reason in chain:
            if isinstance(reason, _TooSlow):
                return self.too_slow
            if isinstance(reason, DownloadError):
                return self._without_secrets(reason.message)
            response = getattr(reason, "response", None)
            if isinstance(response, dict):
                error = response.get("Error", {})
                status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                said = f"{error.get('Code')}: {error.get('Message')}"
                return self._without_secrets(f"{self._bucket.shown} answered {status} ({said})")
        if isinstance(chain[0], OSError) and chain[0].filename is not None:
            return f"its file cannot be read: {chain[0].strerror}"
        kind = type(chain[-1]).__name__
        return f"{self._bucket.shown} could not be reached ({kind})"

    def _without_secrets(self, text: str) -> str:
        for secret in (self._bucket.secret, self._bucket.key_id):
            text = text.replace(secret.reveal(), "***")
        return text[:_SAID]


def _reasons(problem: BaseException) -> Iterator[BaseException]:
    """A problem and its causes; botocore wraps exceptions in several ways."""
    seen: list[BaseException] = []
    inner: BaseException | None = problem
    while inner is not None and inner not in seen and len(seen) < 10:
        seen.append(inner)
        yield inner
        wrapped = getattr(inner, "kwargs", {}).get("error")
        inner = wrapped if isinstance(wrapped, BaseException) else None
        inner = inner or seen[-1].__cause__ or seen[-1].__context__


def _guard(client: Any, policy: AddressPolicy, connections: Connections) -> None:
    """Make a boto3 client send everything over `connections`, without a proxy, to URLs that
    `policy` allows."""
    from botocore.httpsession import URLLib3Session

    session = URLLib3Session(timeout=_TIMEOUT, max_pool_connections=16)
    _use(session, connections)

    def send(request: Any, **_: Any) -> Any:
        policy.target(request.url)
        return session.send(request)

    # botocore uses what a `before-send` handler returns as the response.
    client.meta.events.register("before-send", send)


def _use(session: Any, connections: Connections) -> None:
    import botocore.awsrequest as aws

    plain = _guarded(aws.AWSHTTPConnection, connections, "http")
    secure = _guarded(aws.AWSHTTPSConnection, connections, "https")
    classes = {
        "http": type("Pool", (aws.AWSHTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("Pool", (aws.AWSHTTPSConnectionPool,), {"ConnectionCls": secure}),
    }
    # The second is for a proxy from the environment.
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme = classes


def _consume_headers(self: Any, fp: Any) -> None:
    """After a 100 Continue. botocore's own loops forever if the connection ends there."""
    while fp.readline() not in (b"\r\n", b""):
        pass


def _guarded(base: type, connections: Connections, scheme: str) -> type:
    def new_connection(self: Any) -> socket.socket:
        return connections.connect(Target("", scheme, self.host, self.port, "/"), self.timeout)

    return type(
        "Guarded" + base.__name__,
        (base,),
        {"_new_conn": new_connection, "_consume_headers": _consume_headers},
    )


class PresignedUploader:
    """Uploads one job's files; has the interface of `BucketUploader`. `addresses` are by the
    upload's key."""

    def __init__(
        self, addresses: Mapping[str, PutAddress], policy: AddressPolicy, deadline: Deadline
    ) -> None:
        self._addresses = addresses
        self._policy = policy
        self._deadline = deadline
        self._channels: list[Channel] = []
        self._lock = threading.Lock()
        self._aborted = False

    @property
    def too_slow(self) -> str:
        """The reason for an abandoned upload."""
        return f"its address took more than {self._deadline.seconds:.0f} s"

    def abort(self) -> None:
        """Close all connections and allow no new ones."""
        self._aborted = True
        with self._lock:
            for channel in self._channels:
                channel.abort()

    def close(self) -> None:
        """Every upload has ended."""
        with self._lock:
            for channel in self._channels:
                channel.close()

    def put(self, upload: Upload) -> str:
        """Upload a file; returns its address without the query, which is secret. Raises
        NotUploaded."""
        address = self._addresses.get(upload.key)
        if address is None:
            raise NotUploaded("there are more results than upload_urls")
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._attempt(upload, address)
                return without_query(address.url)
            except DownloadError as problem:
                if self._aborted or self._deadline.expired:
                    raise NotUploaded(self.too_slow) from None
                if not (problem.transient and left):
                    raise NotUploaded(problem.message.rstrip(".")) from None
                time.sleep(min(_PAUSE_SECONDS, self._deadline.remaining))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, upload: Upload, address: PutAddress) -> None:
        channel = Channel(self._policy, min(_SILENCE_SECONDS, self._deadline.remaining + 0.1))
        with self._lock:
            self._channels.append(channel)
        try:
            with open_regular(upload.local) as file:
                self._send(channel, file, upload, address)
        except OSError as problem:
            raise NotUploaded(f"its file cannot be read: {problem.strerror}") from None
        finally:
            channel.close()

    def _send(self, channel: Channel, file: BinaryIO, upload: Upload, address: PutAddress) -> None:
        if self._aborted:
            channel.abort()
        size = os.fstat(file.fileno()).st_size
        given = {name.lower(): text for name, text in address.headers.items()}
        headers = {"content-type": upload.mime_type, **given}
        status = channel.put(address.url, file, size, headers)
        if not 200 <= status < 300:
            raise DownloadError(
                "download.http_status",
                f"{shown(address.url)} answers with status {status}",
                "",
                transient=status in (408, 429) or status >= 500,
                status=status,
            )
