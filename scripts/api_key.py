"""The client's API key: whether it is usable, and which addresses may get it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_KEY = re.compile(r"[\x21-\x7e]+")


class KeyUnusable(Exception):
    """There is no usable API key; `str()` never contains it."""


def usable_key(given: str | None) -> str:
    """The stripped key. Raises KeyUnusable, without quoting it."""
    key = (given or "").strip()
    if not key:
        raise KeyUnusable(
            "RUNPOD_API_KEY is not set. Make a key in the Runpod console under Settings → API "
            "Keys, or name a local worker with --url http://127.0.0.1:8000."
        )
    if not _KEY.fullmatch(key):
        raise KeyUnusable(
            "RUNPOD_API_KEY holds white space or characters that no key has. Copy it again."
        )
    return key


def is_safe_for_a_key(url: str) -> bool:
    """https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def is_loopback(host: str | None) -> bool:
    """Is it this machine?"""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
