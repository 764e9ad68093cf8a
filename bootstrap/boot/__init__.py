"""The order of the start, and what came of it."""

from bootstrap.boot.boot import Boot
from bootstrap.boot.preparation import Preparation
from bootstrap.boot.report import BootReport, boot_json, boot_text, waterfall
from bootstrap.boot.schedule import Stage

__all__ = [
    "Boot",
    "BootReport",
    "Preparation",
    "Stage",
    "boot_json",
    "boot_text",
    "waterfall",
]
