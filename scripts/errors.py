"""What can go wrong with the client: one exception with a code, a sentence and a hint."""

from __future__ import annotations

from bootstrap.core.findings import Fault

DONE, FAILED, USAGE, UNREACHABLE, TIMEOUT, NOT_SAVED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
EXIT_CODES = """exit codes:
  0    completed, and everything is saved (--diagnostics: no errors found)
  1    the job failed, or was cancelled elsewhere (--diagnostics: errors found)
  2    an argument, a file or the key cannot be used; nothing was sent
  3    the endpoint could not be reached, or refused
  4    not done within --timeout; the job was cancelled
  5    completed, but a result could not be saved
  130  stopped by Ctrl-C; the job was cancelled"""
CODES = {
    "client.usage": "An argument or a file cannot be used",
    "client.key_unusable": "The API key is not set, or cannot be sent",
    "client.key_refused": "The endpoint refuses the API key",
    "client.unreachable": "The endpoint cannot be reached, or is too busy",
    "client.refused": "The endpoint refuses the request",
    "client.bad_answer": "The endpoint's answer cannot be read",
    "client.timeout": "The job was not done within --timeout",
    "client.interrupted": "The client was stopped by Ctrl-C",
    "client.no_reason": "The job ended without a result, and without a reason",
    "client.no_output": "The job is COMPLETED but has no output",
}
_EXIT_CODES = {
    "client.usage": USAGE,
    "client.key_unusable": USAGE,
    "client.key_refused": UNREACHABLE,
    "client.unreachable": UNREACHABLE,
    "client.refused": UNREACHABLE,
    "client.bad_answer": UNREACHABLE,
    "client.timeout": TIMEOUT,
    "client.interrupted": INTERRUPTED,
}


class ClientError(Fault):
    """A job did not come to its end, or was not sent. `str()` is the sentence with its hint. A code
    that is not of `CODES` is the worker's; empty where it gave none."""

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    @property
    def exit_code(self) -> int:
        """How the client ends because of it."""
        return _EXIT_CODES.get(self.code, FAILED)


class UsageError(ClientError):
    """Wrong use: nothing was sent."""

    def __init__(self, message: str, fix: str = "", code: str = "client.usage") -> None:
        super().__init__(code, message, fix)


class EndpointError(ClientError):
    """The endpoint could not be reached, or refused."""


class TooSlow(EndpointError):
    """The endpoint took the request and did not answer in time."""
