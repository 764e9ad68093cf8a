"""An endpoint over HTTP: Runpod's public API, or the local API of one worker.

The key goes to one host. Redirects are not followed, and no answer is printed that holds the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import NameResolutionError, NewConnectionError

from scripts.errors import EndpointError, TooSlow

PUBLIC_API = "https://api.runpod.ai/v2"
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
TRIES = 6
_MOST_WAIT_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What an endpoint says of a job. While it runs, `output` is its progress, in any form."""

    id: str
    status: str
    output: Any = None
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True)
class _NoAnswer:
    """Why an attempt came to nothing; `wait` is the seconds that the server asks for."""

    said: str
    maybe_arrived: bool = False
    too_slow: bool = False
    refused: bool = False
    status: int | None = None
    wait: float | None = None


class _Bearer(AuthBase):
    """Set as `auth`, so that ~/.netrc cannot put something else into the header."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """A Runpod endpoint, or with `key=None` the local API that `--rp_serve_api` serves.

    `base` has no slash at its end. All calls raise EndpointError. `tell` gets a line for each
    attempt that is made again; `serve` is how a local worker is started.
    """

    def __init__(
        self,
        base: str,
        key: str | None,
        tell: Tell,
        sleep: Callable[[float], None] = time.sleep,
        serve: str = "comfyui-worker serve --local",
    ) -> None:
        self._base = base
        self._key = key
        self._tell = tell
        self._sleep = sleep
        self._serve = serve
        self._session = requests.Session()
        self._session.auth = _Bearer(key)
        self._session.trust_env = key is not None  # no proxy stands before a local worker
        self.local = key is None

    def submit(self, given: Mapping[str, Any]) -> Job:
        """Queue `{"input": given}`."""
        return self._job(self._call("POST", "run", {"input": given}, may_repeat=True))

    def run_and_wait(self, given: Mapping[str, Any], seconds: float) -> Job:
        """Run `{"input": given}` on a local worker, which tells nothing until it is done."""
        body = {"input": given}
        return self._job(self._call("POST", "runsync", body, may_repeat=False, seconds=seconds))

    def reach(self) -> None:
        """Raises where nothing takes a connection, before anything is said to run."""
        got = self._attempt("GET", "", None, _CONNECT_SECONDS)
        if isinstance(got, _NoAnswer) and got.refused:
            raise self._failure("", got)

    def status(self, job_id: str) -> Job:
        """How a job is."""
        return self._job(self._call("GET", f"status/{quote(job_id, safe='')}", may_repeat=True))

    def health(self) -> Any:
        """How many jobs and workers there are, as the endpoint says; None where it says nothing.
        Never raises: it is news, and the job is not."""
        try:
            return self._call("GET", "health", may_repeat=True, seconds=5.0, tries=1)
        except EndpointError:
            return None

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it."""
        self._call("POST", f"cancel/{quote(job_id, safe='')}", may_repeat=True, tries=2)

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        may_repeat: bool,
        seconds: float = _ANSWER_SECONDS,
        tries: int = TRIES,
    ) -> Any:
        """The JSON that is answered. `may_repeat`: also after an answer that may have been lost."""
        attempt = 1
        while isinstance(got := self._attempt(method, path, body, seconds), _NoAnswer):
            again = may_repeat or not got.maybe_arrived
            # Nothing was begun yet, so a wrong address is reported without waiting.
            at_once = got.refused and path in ("run", "runsync")
            if attempt == tries or not again or at_once:
                raise self._failure(path, got)
            wait = got.wait or min(2.0 ** (attempt - 1), _MOST_WAIT_SECONDS)
            self._tell(f"{got.said}; trying again in {wait:g} s ({attempt} of {tries - 1})")
            self._sleep(wait)
            attempt += 1
        return self._content(got)

    def _failure(self, path: str, got: _NoAnswer) -> EndpointError:
        place = _place(f"{self._base}/{path}").rstrip("/")
        failure = TooSlow if got.too_slow else EndpointError
        return failure("client.unreachable", f"{place}: {got.said}.", self._reach_fix(got))

    def _attempt(
        self, method: str, path: str, body: Any, seconds: float
    ) -> requests.Response | _NoAnswer:
        url, timeout = f"{self._base}/{path}", (_CONNECT_SECONDS, seconds)
        try:
            answer = self._session.request(
                method, url, json=body, timeout=timeout, allow_redirects=False
            )
        except requests.RequestException as problem:
            said, sent = _in_words(problem), not _never_sent(problem)
            if sent and path == "run":
                said += " (should the request have arrived, the job runs twice)"
            slow = sent and isinstance(problem, requests.Timeout)
            return _NoAnswer(said, sent, slow, refused=not sent)
        if answer.status_code in _TRY_AGAIN:
            said = f"status {answer.status_code} ({HTTPStatus(answer.status_code).phrase.lower()})"
            return _NoAnswer(said, wait=_retry_after(answer), status=answer.status_code)
        return answer

    def _content(self, answer: requests.Response) -> Any:
        status, place = answer.status_code, _place(answer.url)
        if 300 <= status < 400:
            where = urlsplit(answer.headers.get("Location", "")).hostname or "another address"
            raise EndpointError(
                "client.refused",
                f"{place} redirects to {where}. It was not followed, as the key is not for others.",
                "Correct the address of the endpoint.",
            )
        if status in (401, 403):
            raise EndpointError(
                "client.key_refused",
                f"{place} refuses the key (status {status}).",
                "Make one in the Runpod console under Settings → API Keys, with the right to this "
                "endpoint, and set RUNPOD_API_KEY.",
            )
        if status == 404:
            said = f"{place} does not exist (404)."
            raise EndpointError("client.refused", said, self._missing_fix(place))
        if status >= 400:
            said = f"{place} answers {status}: {self._shown(answer.text)}"
            raise EndpointError("client.refused", said)
        text = self.without_key(answer.content.decode("utf-8", "replace"))
        try:
            return json.loads(text)
        except ValueError:
            said = f"{place} answers with something that is not JSON: {self._shown(text)}"
            raise EndpointError("client.bad_answer", said) from None

    def _job(self, answer: Any) -> Job:
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            said = f"The endpoint names no job: {self._shown(str(answer))}"
            raise EndpointError("client.bad_answer", said)
        error = answer.get("error")
        words = error if isinstance(error, str) else "" if error is None else str(error)
        status = str(answer.get("status") or "IN_QUEUE")
        return Job(answer["id"], status, answer.get("output"), words)

    def without_key(self, text: str) -> str:
        """`text` as it may be shown, whatever an answer holds."""
        return text.replace(self._key, "***") if self._key else text

    def _shown(self, text: str) -> str:
        return self.without_key(" ".join(text.split()))[:300] or "(nothing)"

    def _reach_fix(self, got: _NoAnswer) -> str:
        if got.status == 429:
            return "It takes no more requests for now: send the job again later."
        if got.status is not None and not self.local:
            return "Look at the endpoint's state in the Runpod console, or try again later."
        if self.local:
            return f"Is the worker started? `{self._serve}` starts one."
        return "Check the network, and the endpoint's state in the Runpod console."

    def _missing_fix(self, place: str) -> str:
        if self.local:
            return "Give --url without a path, as http://127.0.0.1:8000."
        if "/status/" in place:
            return "A job's result is kept for 30 minutes."
        return "Check RUNPOD_ENDPOINT_ID: it is the short name in the console's list of endpoints."


def _never_sent(problem: requests.RequestException) -> bool:
    """The connection was refused: what was to be sent was not."""
    connecting = isinstance(_reason(problem), NewConnectionError)
    return connecting or isinstance(problem, requests.ConnectTimeout)


def _reason(problem: requests.RequestException) -> object:
    return getattr(problem.args[0] if problem.args else None, "reason", None)


def _in_words(problem: requests.RequestException) -> str:
    if isinstance(problem, requests.Timeout):
        return "no answer in time"
    if isinstance(problem, requests.exceptions.SSLError):
        return "the certificate or TLS connection is not good"
    if isinstance(problem, requests.exceptions.ProxyError):
        return "the proxy of this machine's settings does not answer"
    if _never_sent(problem):
        if isinstance(_reason(problem), NameResolutionError):
            return "the host's name cannot be resolved"
        return "nothing answers there"
    return "the connection was cut"


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds the server asks for, within reason; dates are not used by Runpod."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), _MOST_WAIT_SECONDS) if text.isdecimal() else None
