"""Vocabulary of all rooms: errors and replies, deadlines, calls that block and their limits."""

__all__ = ["blocking", "calls", "deadline", "errors", "media_types", "reply"]
