"""Pure: the models of a download request, with all their faults at once."""

from __future__ import annotations

from collections.abc import Sequence

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in
from bootstrap.models.manifest import VERSION, parse_manifest
from bootstrap.models.manifest_entry import ModelSpec
from handler.errors import JobError
from handler.words import wrong_type

_LISTED = 10


def read_entries(given: object, settings: Settings) -> tuple[tuple[ModelSpec, ...], list[str]]:
    """The wanted models, and warnings. Raises JobError, also where requests are not allowed."""
    if not settings.allow_download_requests:
        raise JobError(
            "request.download_off",
            "Download requests are off on this endpoint.",
            "Set ALLOW_DOWNLOAD_REQUESTS=true in its environment variables, or name the models "
            "in models.json at the volume's root.",
        )
    if not isinstance(given, list) or not given:
        example = '{"url": "https://…", "directory": "loras"}'
        raise wrong_type("models", f"a list of manifest entries such as {example}", given)
    http = settings.allow_private_download_urls
    manifest = parse_manifest({"version": VERSION, "models": given}, "request", http)
    faults = errors_in(manifest.findings)
    if faults:
        raise _refused(faults)
    return manifest.models, [f"{f.message} {f.fix}".strip() for f in manifest.findings]


def _refused(faults: Sequence[Finding]) -> JobError:
    """The first fault gives the code; the sentence and the details hold them all."""
    first = faults[0]
    if len(faults) == 1:
        return JobError.from_finding(first)
    said = " ".join(
        f"({i}) {fault.message} {fault.fix}" for i, fault in enumerate(faults[:_LISTED], 1)
    )
    more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return JobError(
        first.code,
        f"The request has {len(faults)} faults: {said}{more}",
        findings=[fault.as_dict() for fault in faults],
    )
