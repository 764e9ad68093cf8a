"""Everything before the first job: look, decide, act, report."""

__version__ = "0.1.0"
