"""Pure: `s3Config` of a request -> the bucket its results go to, or what is wrong with it.

All that can be told without asking anybody is told here, before the GPU works for results that
could not be uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.config import Settings
from bootstrap.config.bucket import S3_CONFIG, Bucket, bucket_from, bucket_of
from bootstrap.net.addresses import AddressPolicy
from bootstrap.net.errors import DownloadError
from handler.errors import JobError

_SHAPE = 'an object {"accessId", "accessSecret", "bucketName", "endpointUrl"}'


def read_bucket(s3_config: object, settings: Settings) -> Bucket | None:
    """The request's own bucket, else the endpoint's. Raises JobError, which holds no secret."""
    if s3_config is None:
        return bucket_of(settings)
    if not isinstance(s3_config, Mapping):
        raise JobError("request.wrong_type", f"{S3_CONFIG} is no object.", f"Send {_SHAPE}.")
    try:
        bucket = bucket_from(s3_config, settings)
    except ValueError as problem:
        raise JobError(
            "output.bad_bucket", f"{S3_CONFIG}: {problem}.", f"Send {_SHAPE}, all texts."
        ) from None
    try:
        AddressPolicy(settings.allow_private_urls).at_sight(s3_config["endpointUrl"].strip())
    except DownloadError as problem:
        raise JobError(
            "output.bad_bucket",
            f"{S3_CONFIG}: endpointUrl: {problem.message}",
            "Send a public https address, without a login; where addresses of your own network are "
            "meant, set ALLOW_PRIVATE_URLS=true in the endpoint's environment.",
        ) from None
    return bucket
