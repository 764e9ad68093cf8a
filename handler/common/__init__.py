"""Shared vocabulary: errors, deadlines, replies, and blocking calls with their limits."""

__all__ = ["blocking", "calls", "errors", "media_types", "reply"]
