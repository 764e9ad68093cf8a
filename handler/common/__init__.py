"""Shared vocabulary: errors, deadlines, replies, and blocking calls with their limits."""

__all__ = ["blocking", "errors", "media_types", "reply"]
