"""Wanted models on disk: which they are, whether they are there, how they are had, read ahead."""

# Modules, not names: the checker needs how a weights file is read, and nothing of downloads.
__all__ = [
    "background",
    "by_address",
    "cli",
    "download",
    "installed",
    "manifest",
    "manifest_entry",
    "manifest_file",
    "prefetch",
    "provision",
    "sources",
    "weights_file",
]
