"""How a fault was answered, and whether correctly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Answer = tuple[dict[str, Any], float]


@dataclass(frozen=True)
class Outcome:
    """How a fault was answered: in `seconds`, correctly or not; `said` explains a failure."""

    right: bool
    seconds: float
    said: str


def refused(answer: Answer, code: str, cause: str = "") -> Outcome:
    """Right if the error has this code, and this cause in its details."""
    output, seconds = answer
    found = (output.get("error_code", ""), output.get("details", {}).get("cause", ""))
    right = found == (code, cause) and bool(output.get("error") or output.get("fix"))
    return Outcome(right, seconds, f"{found}")


def completed(answer: Answer, warned: str = "") -> Outcome:
    """Right if the job completed, with a warning that contains `warned`, if given."""
    output, seconds = answer
    reported = any(warned in warning for warning in output.get("warnings", [])) or not warned
    right = output.get("status") == "completed" and reported
    return Outcome(right, seconds, json.dumps(output.get("warnings") or output.get("error_code")))
