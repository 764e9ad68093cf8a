"""Models by manifest: which they are, whether they are there, how they are fetched and read
ahead."""

# Modules, not names: the checker reads weights files, and must not load what downloads need.
__all__ = [
    "by_address",
    "cli",
    "download",
    "manifest",
    "manifest_command",
    "manifest_entry",
    "manifest_file",
    "prefetch",
    "provision",
    "provisioner",
    "sources",
    "weights_file",
]
