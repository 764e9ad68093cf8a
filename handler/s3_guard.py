"""boto3 over connections of our own: they can be aborted, and a stranger's endpoint is kept to the
addresses it may have.

botocore's time-outs start again with each byte, so a bucket that answers a byte a second would hold
an upload for hours; and a bucket that comes with a request is reached only over connections whose
address was checked when they were made: a name that resolves differently a moment later gains
nothing.
"""

from __future__ import annotations

import socket
from typing import Any

import botocore.awsrequest as aws
from botocore.httpsession import URLLib3Session

from bootstrap.net.addresses import AddressPolicy, Target
from bootstrap.net.http import Connections


def guard(
    client: Any,
    policy: AddressPolicy | None,
    connections: Connections,
    timeout: tuple[float, float],
) -> None:
    """Let a boto3 client send everything over `connections`; with a `policy` without any proxy, to
    addresses that it allows."""
    if policy is None:
        _use(client._endpoint.http_session, None, connections)
        return
    session = URLLib3Session(timeout=timeout, max_pool_connections=16)
    _use(session, policy, connections)

    def send(request: Any, **_: Any) -> Any:
        policy.target(request.url)
        return session.send(request)

    # botocore takes what a `before-send` handler returns for the answer.
    client.meta.events.register("before-send", send)


def _use(session: Any, policy: AddressPolicy | None, connections: Connections) -> None:
    plain = _guarded(aws.AWSHTTPConnection, policy, connections, "http")
    secure = _guarded(aws.AWSHTTPSConnection, policy, connections, "https")
    session._manager.pool_classes_by_scheme = {
        "http": type("Pool", (aws.AWSHTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("Pool", (aws.AWSHTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


def _guarded(
    base: type, policy: AddressPolicy | None, connections: Connections, scheme: str
) -> type:
    def new_connection(self: Any) -> socket.socket:
        target = Target("", scheme, self.host, self.port, "/")
        addresses = (policy or AddressPolicy(allow_private=True)).addresses(target)
        return connections.connect(addresses, self.port, self.timeout)

    return type("Guarded" + base.__name__, (base,), {"_new_conn": new_connection})
