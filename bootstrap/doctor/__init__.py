"""Facts about this machine and volume, the findings from them, and repairs."""

from bootstrap.doctor.checks.volume import check_layout
from bootstrap.doctor.facts import Facts, Scope
from bootstrap.doctor.facts.volume_facts import look_at_link
from bootstrap.doctor.report import (
    JSON_VERSION,
    Report,
    bounded,
    examine,
    of_volume,
    repairs_of,
    report_json,
    report_text,
)

__all__ = [
    "JSON_VERSION",
    "Facts",
    "Report",
    "Scope",
    "bounded",
    "check_layout",
    "examine",
    "fix",
    "look_at_link",
    "of_volume",
    "page",
    "repairs_of",
    "report_json",
    "report_text",
]
