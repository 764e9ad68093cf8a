"""Packages that a start adds to what ComfyUI's Python has, where NODE_REQUIREMENTS=install."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bootstrap.facts.node_packs import Pack
from bootstrap.facts.packages import Package, PackagesFacts
from bootstrap.package_archive import BadArchive, archive_at, read_record
from bootstrap.wanted_packages import wanted_by


def with_added(packages: PackagesFacts, packs: Iterable[Pack], volume: Path) -> PackagesFacts:
    """`packages`, and behind them those of the archive on the volume that a worker would use for
    `packs`."""
    if not packages.usable:
        return packages
    wanted = wanted_by(packs, packages)
    archive = archive_at(volume, wanted, packages)
    try:
        record = read_record(archive)
    except (OSError, BadArchive):
        return packages
    added = [Package(name, version, str(archive)) for name, version in record.installed.items()]
    return replace(packages, packages=(*packages.packages, *added))
