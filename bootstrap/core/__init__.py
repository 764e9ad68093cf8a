"""Vocabulary and primitives for all other rooms; they depend on none of them."""

__all__ = [
    "archive",
    "child_guard",
    "concurrency",
    "container_limits",
    "files",
    "findings",
    "log",
    "page_cache",
    "redact",
    "temp_files",
    "terminal",
    "text",
]
