"""boto3, kept to the addresses a stranger's endpoint may have.

A bucket that comes with a request is reached only over connections whose address was checked when
they were made: a name that resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import socket
from typing import Any

import botocore.awsrequest as aws
from botocore.httpsession import URLLib3Session

from bootstrap.net.addresses import AddressPolicy, Target


class GuardedSession(URLLib3Session):  # type: ignore[misc]  # botocore publishes no types
    """Sends botocore's requests without any proxy, to addresses that `policy` allows."""

    def __init__(self, policy: AddressPolicy, timeout: tuple[float, float]) -> None:
        super().__init__(timeout=timeout, max_pool_connections=16)
        plain = _guarded(aws.AWSHTTPConnection, policy, "http")
        secure = _guarded(aws.AWSHTTPSConnection, policy, "https")
        self._manager.pool_classes_by_scheme = {
            "http": type("Pool", (aws.AWSHTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("Pool", (aws.AWSHTTPSConnectionPool,), {"ConnectionCls": secure}),
        }


def guard(client: Any, policy: AddressPolicy, timeout: tuple[float, float]) -> None:
    """Let a boto3 client send everything through a `GuardedSession`.

    botocore takes what a `before-send` handler returns for the answer.
    """
    session = GuardedSession(policy, timeout)

    def send(request: Any, **_: Any) -> Any:
        policy.target(request.url)
        return session.send(request)

    client.meta.events.register("before-send", send)


def _guarded(base: type, policy: AddressPolicy, scheme: str) -> type:
    def new_connection(self: Any) -> socket.socket:
        problem: OSError | None = None
        target = Target("", scheme, self.host, self.port, "/")
        for address in policy.addresses(target):
            try:
                return socket.create_connection((address, self.port), self.timeout)
            except OSError as failed:
                problem = failed
        raise problem or OSError("its name has no address")

    return type("Guarded" + base.__name__, (base,), {"_new_conn": new_connection})
