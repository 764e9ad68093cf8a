"""How bytes from elsewhere become a checked file under its final name.

`transfer` receives, `part` holds what is not whole yet, `verify` judges and hashes along;
`download` is the door.
"""

__all__ = ["download", "part", "progress", "remote", "verify"]
