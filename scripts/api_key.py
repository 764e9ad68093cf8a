"""The client's API key: can it be sent, and to which addresses may it go?"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from scripts.errors import UsageError

_KEY = re.compile(r"[\x21-\x7e]+")


def usable_key(given: str | None) -> str:
    """The key without white space around it. Raises UsageError, which does not quote it."""
    key = (given or "").strip()
    if not key:
        raise UsageError(
            "RUNPOD_API_KEY is not set.",
            "Make a key in the Runpod console under Settings → API Keys, or name a local worker "
            "with --url http://127.0.0.1:8000.",
            "client.key_unusable",
        )
    if not _KEY.fullmatch(key):
        said = "RUNPOD_API_KEY holds white space or characters that no key has."
        raise UsageError(said, "Copy it again.", "client.key_unusable")
    return key


def is_safe_for_a_key(url: str) -> bool:
    """https, or this very machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def is_loopback(host: str | None) -> bool:
    """Is it this machine?"""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
