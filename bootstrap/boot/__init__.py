"""The order of the start, and its outcome."""

from bootstrap.boot.boot import Boot
from bootstrap.boot.report import BootReport, boot_json, boot_text, log_report, waterfall
from bootstrap.boot.runtime import Runtime, Serving
from bootstrap.boot.task_runner import Stage

__all__ = [
    "Boot",
    "BootReport",
    "Runtime",
    "Serving",
    "Stage",
    "boot_json",
    "boot_text",
    "log_report",
    "waterfall",
]
