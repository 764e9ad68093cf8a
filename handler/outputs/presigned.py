"""Files -> addresses that a request brought, by HTTP PUT; most are presigned ones of a bucket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO

from bootstrap.core.files import open_regular
from bootstrap.net.addresses import AddressPolicy, shown, without_query
from bootstrap.net.errors import DownloadError
from bootstrap.net.http import Channel
from handler.common.deadline import Deadline
from handler.outputs.s3 import NotUploaded, Upload
from handler.request.fields import PutAddress

_SILENCE_SECONDS = 60.0
_ATTEMPTS = 3
_PAUSE_SECONDS = 0.5


class PutAddresses:
    """Uploads one job's files; the same face as a `Store`. `addresses` by the upload's key."""

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
        """Why an upload failed that was given up."""
        return f"its address took more than {self._deadline.seconds:.0f} s"

    def abort(self) -> None:
        """Close all connections, now and from now on."""
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
        """Upload a file; its address without the query, which is a secret. Raises NotUploaded."""
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
