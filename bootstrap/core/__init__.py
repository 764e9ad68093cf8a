"""Vocabulary and primitives for all other rooms; they depend on none of them."""

__all__ = [
    "archive",
    "concurrency",
    "files",
    "findings",
    "guard",
    "log",
    "memory",
    "page_cache",
    "redact",
    "temp_files",
    "terminal",
    "text",
]
