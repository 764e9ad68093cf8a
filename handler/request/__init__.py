"""Turns a job's input into a request, or an error that says what to send instead."""

# Modules, not names: the client and the warm-up read workflows before anything else is loaded.
__all__ = [
    "compatibility",
    "input_files",
    "named_workflows",
    "options",
    "params",
    "parse",
    "references",
    "workflow",
]
