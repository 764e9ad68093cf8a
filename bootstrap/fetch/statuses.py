"""HTTP statuses of a plain server in words; Hugging Face and Civitai have their own."""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.fetch.addresses import shown
from bootstrap.fetch.errors import TRY_AGAIN, DownloadError
from bootstrap.fetch.reply import Reply

# status -> (code, sentence, fix); {where} is the URL without its query.
Words = Mapping[int, tuple[str, str, str]]
_TOKEN = "set DOWNLOAD_TOKEN and DOWNLOAD_TOKEN_HOST in the endpoint's environment variables"
PLAIN: Words = {
    401: (
        "download.login_needed",
        "{where} wants a login (401).",
        f"If you have a token for this host, {_TOKEN}; a token that is set may have expired.",
    ),
    403: (
        "download.forbidden",
        "{where} refuses access (403); a signed URL may have expired.",
        f"Make a new signed URL, or {_TOKEN}.",
    ),
    404: ("download.not_found", "{where} does not exist (404).", "Correct the URL."),
    410: ("download.gone", "{where} was removed for good (410).", "Find another source."),
    429: (
        "download.rate_limited",
        "{where} is asked too often (429).",
        "Wait a while, or lower DOWNLOAD_CONNECTIONS.",
    ),
}


def explain(reply: Reply, words: Words = PLAIN, detail: str = "") -> DownloadError:
    """The error for an answer that is no file. 408, 429 and 5xx are worth another attempt."""
    where = shown(reply.url)
    transient = reply.status in (408, 429) or reply.status >= 500
    code, sentence, fix = words.get(
        reply.status,
        ("download.http_status", f"{{where}} answers {reply.status}.", TRY_AGAIN),
    )
    message = sentence.format(where=where) + (f" It says: {detail[:200]!r}." if detail else "")
    return DownloadError(
        code,
        message,
        fix,
        transient=transient,
        retry_after=_retry_after(reply),
        status=reply.status,
    )


def _retry_after(reply: Reply) -> float | None:
    """Seconds; an HTTP date there is taken as "a while", which is what the caller does anyway."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
