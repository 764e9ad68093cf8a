"""The models of one boot: wanted ones brought while ComfyUI starts, all of them made visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bootstrap.apply import link_models
from bootstrap.findings import Finding, errors_in
from bootstrap.manifest import Manifest
from bootstrap.manifest_file import load_manifest
from bootstrap.settings import Settings
from bootstrap.volume import MODELS, Layout, locate

if TYPE_CHECKING:
    from bootstrap.provisioning import Provisioning


class BootModels:
    """What a boot does about models on the volume of `layout`."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout
        self._manifest = Manifest()
        self._provisioning: Provisioning | None = None
        self._came_late = False

    def read_manifest(self) -> Sequence[Finding]:
        """Which models are wanted; errors where the manifest is none."""
        http = self._settings.allow_private_download_urls
        self._manifest = load_manifest(self._settings.models_manifest, self._layout.root, http)
        return self._manifest.findings

    def fetch(self) -> None:
        """Begin to fetch wanted models that are missing; returns at once.

        The packages that downloads need are imported only where something is wanted.
        """
        if not self._manifest.models:
            return
        from bootstrap.provisioning import Provisioning, workplace_for

        workplace = workplace_for(self._settings, self._layout)
        if self._layout.comfyui_on_volume:
            # The platform's cache is this host's own: links to it must not lie on the volume.
            workplace = replace(workplace, cached=lambda _: None)
        self._provisioning = Provisioning(self._manifest.models, workplace)
        self._provisioning.start()

    def link(self) -> list[Finding]:
        """Make the volume's models visible to ComfyUI."""
        return link_models(self._layout)

    @property
    def wanted(self) -> bool:
        """Is anything being brought that jobs wait for?"""
        return self._provisioning is not None

    def wait(self) -> list[Finding]:
        """Required models hold back the first job, up to DOWNLOAD_TIMEOUT; then they are linked."""
        if self._provisioning is None:
            return []
        self._provisioning.wait_for_required(self._settings.download_timeout)
        return [*self._provisioning.findings(), *self._link_what_came(self._provisioning)]

    def faults_now(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """The errors among a boot's findings, but for models that came since."""
        faults = errors_in(findings)
        pending = tuple(f for f in faults if f.code == "provision.pending")
        if not pending or self._provisioning is None or not self._provisioning.ready:
            return faults
        if not self._came_late:
            self._came_late = True
            self._link_what_came(self._provisioning)
        return tuple(f for f in faults if f not in pending)

    def stop(self) -> None:
        """Stop fetching; what is half there is resumed next time."""
        if self._provisioning is not None:
            self._provisioning.stop()

    def _link_what_came(self, provisioning: Provisioning) -> list[Finding]:
        from bootstrap.provisioning import link_cached

        layout = locate(self._settings)  # models/ may be there only now
        if layout.comfyui is not None and not layout.comfyui_on_volume:
            link_cached(provisioning.results(), layout.comfyui / MODELS)
        return link_models(layout)
