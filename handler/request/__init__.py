"""Turns a job's input into a request, or an error that says what to send instead."""

# Modules, not names: the client and the warm-up read workflows before anything else is loaded.
__all__ = [
    "compatibility",
    "fields",
    "named_workflows",
    "params",
    "parse",
    "references",
    "workflow",
]
