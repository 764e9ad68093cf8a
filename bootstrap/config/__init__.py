"""Environment variables as frozen settings, read once."""

from bootstrap.config.fields import is_on, is_ours, is_template
from bootstrap.config.settings import Settings, read_settings, settings_table, variables

__all__ = [
    "Settings",
    "bucket",
    "is_on",
    "is_ours",
    "is_template",
    "read_settings",
    "settings_table",
    "variables",
]
