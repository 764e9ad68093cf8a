"""What came in becomes a request, or an error that says what to send instead."""

# Modules, not names: a client reads workflows, and the warm-up too, before anything else is loaded.
__all__ = [
    "compatibility",
    "fields",
    "named_workflows",
    "params",
    "parse",
    "references",
    "workflow",
]
