"""Downloads a file and publishes it, checked, under its final name. `transfer` receives, `part` is
the incomplete file, `verify` checks and hashes; `download` is the entry point.
"""

__all__ = ["download", "part", "progress", "remote", "verify"]
