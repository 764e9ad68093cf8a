"""Vocabulary of all rooms: errors, deadlines and replies, calls that block and their limits."""

__all__ = ["blocking", "calls", "errors", "media_types", "reply"]
