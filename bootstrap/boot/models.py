"""The models of one boot: wanted ones brought while ComfyUI starts, all of them made visible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_file import wanted_here
from bootstrap.volume import Layout
from bootstrap.volume.links import link_models

if TYPE_CHECKING:
    from bootstrap.models.background import Provisioning


class BootModels:
    """What a boot does about models on the volume of `layout`."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout
        self._manifest = Manifest()
        self._provisioning: Provisioning | None = None
        self._local_models: Path | None = None
        self._told: list[Finding] = []
        self._linked = False

    def read_manifest(self) -> Sequence[Finding]:
        """Which models are wanted; errors where the manifest is none."""
        self._manifest = wanted_here(self._settings, self._layout)
        return self._manifest.findings

    def fetch(self, local_models: Path) -> None:
        """Begin to fetch wanted models that are missing; returns at once. `local_models` is for
        links to what the platform has cached on this host.

        The packages that downloads need are imported only where something is wanted.
        """
        if not self._manifest.models:
            return
        from bootstrap.models.background import Provisioning, workplace_for

        workplace = workplace_for(self._settings, self._layout)
        self._provisioning = Provisioning(self._manifest.models, workplace)
        self._local_models = local_models
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
        self._told = self._provisioning.findings()
        return [*self._told, *self._link_what_came(self._provisioning)]

    def faults_now(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """The errors among a boot's findings; of wanted models, those that are lacking now."""
        faults = errors_in(findings)
        if self._provisioning is None or not errors_in(self._told):
            return faults
        self._provisioning.look_again()
        if self._provisioning.ready and not self._linked:
            self._link_what_came(self._provisioning)
        lacking = errors_in(self._provisioning.findings())
        return (*(fault for fault in faults if fault not in self._told), *lacking)

    def stop(self, timeout: float) -> None:
        """Stop fetching; what is half there is resumed next time. Waits `timeout` seconds."""
        if self._provisioning is not None:
            self._provisioning.stop(timeout)

    def _link_what_came(self, provisioning: Provisioning) -> list[Finding]:
        from bootstrap.models.background import show_to_comfyui

        self._linked = provisioning.ready
        return show_to_comfyui(self._settings, provisioning.results(), self._local_models)[1]
