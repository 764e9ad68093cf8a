"""Vocabulary and primitives that every other room builds on, and that know none of them."""

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
