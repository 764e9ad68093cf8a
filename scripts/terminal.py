"""What standard output is: a terminal with colours, or not."""

from __future__ import annotations

import os
import sys


def wants_colour() -> bool:
    """On a terminal only; https://no-color.org turns it off."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
