"""HTTP to checked addresses, with credentials only for the hosts they belong to. This file: its
errors, each with a stable code, a sentence and a fix.
"""

from __future__ import annotations

import errno

from bootstrap.core.findings import Fault
from bootstrap.core.text import size_text

__all__ = [
    "CODES",
    "TRY_AGAIN",
    "AddressRefused",
    "DownloadError",
    "OwnershipLost",
    "RemoteChanged",
    "Stopped",
    "WrongBytes",
    "addresses",
    "bad_answer",
    "disk_error",
    "http",
    "keeps_changing",
    "stalled",
    "stopped",
    "unreachable",
]

CODES = {
    "download.login_needed": "The server requires a login (401)",
    "download.forbidden": "The server denies this account the file (403)",
    "download.gated": "The terms of the Hugging Face repository must be accepted first",
    "download.not_found": "There is no such file, version or repository (404)",
    "download.gone": "The file was taken down or archived (410)",
    "download.rate_limited": "The server limits the number of requests (429)",
    "download.http_status": "The server answered with an unexpected status",
    "download.unreachable": "The server cannot be reached, or the connection keeps breaking",
    "download.stalled": "The server sends nothing, or next to nothing",
    "download.bad_answer": "The server's response breaks HTTP or its API's rules",
    "download.not_a_model": "The server sent a web page, JSON or a pointer instead of a model",
    "download.bad_header": "The file does not match its header: truncated or another format",
    "download.empty": "The file has 0 bytes",
    "download.size_mismatch": "The size is not the expected one",
    "download.hash_mismatch": "The SHA-256 is not the expected one",
    "download.keeps_changing": "The file changed on the server at every attempt to fetch it",
    "download.length_unknown": "The file's length is unknown, so a truncated one cannot be noticed",
    "download.no_space": "The disk or the volume's quota is full, or too small for the file",
    "download.disk": "The disk could not be read or written",
    "download.url_refused": "The URL is malformed, not https, or carries a login",
    "download.private_address": "The URL leads to a private address",
    "download.redirect_loop": "The URL redirects in circles or too often",
    "download.redirect_refused": "The URL redirects to plain http or to something not a URL",
    "download.occupied": "Another file already has this name; it is never replaced",
    "download.outside": "A link in the models folder leads out of the volume",
    "download.offline": "`HF_HUB_OFFLINE` is set, and the file is missing",
    "download.no_source": "The worker does not know how to fetch from this URL",
    "download.wrong_type": "The link leads to something that is not a model",
    "download.stopped": "The download was stopped; it resumes next time",
    "download.crashed": "A bug in this program stopped the download of a model",
}


class DownloadError(Fault):
    """A download failed. `transient` ones are worth retrying, after `retry_after` seconds if the
    server said so. The texts contain no credentials and no URL queries."""

    def __init__(
        self,
        code: str,
        message: str,
        fix: str,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(code, message, fix)
        self.transient = transient
        self.retry_after = retry_after
        self.status = status


class AddressRefused(DownloadError):
    """An address that may not be used: malformed, private, or not https."""


class WrongBytes(DownloadError):
    """The bytes are not the model: wrong hash, wrong format, a web page."""


class RemoteChanged(Exception):
    """The file on the server has changed since the download began."""


class OwnershipLost(Exception):
    """Another worker took over our part and continues it."""


class Stopped(Exception):
    """The caller asked to stop."""


TRY_AGAIN = "Try again; the download resumes where it stopped."


def unreachable(host: str, why: object) -> DownloadError:
    """The connection failed or broke."""
    return DownloadError(
        "download.unreachable",
        f"the connection to {host} failed ({why}).",
        f"Check that {host} is up and the name is right, then try again.",
        transient=True,
    )


def stalled(host: str, seconds: float) -> DownloadError:
    """Almost nothing arrived for `seconds`."""
    return DownloadError(
        "download.stalled",
        f"{host} sent (almost) nothing for {seconds:.0f} s.",
        TRY_AGAIN,
        transient=True,
    )


def bad_answer(host: str, what: str) -> DownloadError:
    """The answer violates HTTP."""
    return DownloadError("download.bad_answer", f"{host} {what}.", TRY_AGAIN, transient=True)


def keeps_changing() -> DownloadError:
    """The file was different at every attempt."""
    return DownloadError(
        "download.keeps_changing",
        "the file changed on the server while it was being fetched, several times over.",
        "Try again later, or use a link that names a version.",
    )


def stopped() -> DownloadError:
    """The caller asked to stop."""
    return DownloadError(
        "download.stopped", "the download was stopped.", "It will be resumed next time."
    )


def _full_disk(problem: OSError) -> bool:
    """Is the disk or a quota full? An HTTP library's OSError has no such errno."""
    return problem.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_error(problem: OSError, folder: object, needed: int | None) -> DownloadError:
    """The disk's own error: a failed read, write, fsync or close, with `needed` bytes still
    missing."""
    need = "" if needed is None else f"; {size_text(needed)} more are needed"
    if _full_disk(problem):
        which = "quota" if problem.errno == errno.EDQUOT else "disk"
        return DownloadError(
            "download.no_space",
            f"the {which} is full at {folder}{need}.",
            "Delete files there or enlarge the network volume, then start again.",
        )
    return DownloadError(
        "download.disk",
        f"{folder} could not be read or written ({problem.strerror or problem}).",
        "Check that the volume is mounted, and that this user may read and write there.",
    )
