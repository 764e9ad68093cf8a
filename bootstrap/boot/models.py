"""The models that a boot fetches while ComfyUI starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, errors_in
from bootstrap.models.manifest import Manifest
from bootstrap.volume import Layout

if TYPE_CHECKING:
    from bootstrap.models.background import Provisioning


class WantedModels:
    """The models that the manifest lists for here, fetched in the background.

    `local_models` is for links to what the platform has cached on this host. The packages that
    downloads need are imported only where something is wanted.
    """

    def __init__(
        self, settings: Settings, layout: Layout, manifest: Manifest, local_models: Path
    ) -> None:
        self._settings = settings
        self._local_models = local_models
        self._reported: list[Finding] = []
        self._linked = False
        self._provisioning: Provisioning | None = None
        if manifest.models:
            from bootstrap.models.background import Provisioning, workplace_for

            self._provisioning = Provisioning(manifest.models, workplace_for(settings, layout))

    def begin(self) -> None:
        """Fetch those that are missing; returns at once."""
        if self._provisioning is not None:
            self._provisioning.start()

    @property
    def any(self) -> bool:
        """Is there anything that jobs may have to wait for?"""
        return self._provisioning is not None

    def wait(self) -> list[Finding]:
        """Required models hold back the first job, up to DOWNLOAD_TIMEOUT; then they are linked."""
        if self._provisioning is None:
            return []
        self._provisioning.wait_for_required(self._settings.download_timeout)
        self._reported = self._provisioning.findings()
        return [*self._reported, *self._link_what_came(self._provisioning)]

    def faults_now(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """The errors among a boot's findings; of wanted models, those that are lacking now."""
        faults = errors_in(findings)
        if self._provisioning is None or not errors_in(self._reported):
            return faults
        self._provisioning.look_again()
        if self._provisioning.ready and not self._linked:
            self._link_what_came(self._provisioning)
        lacking = errors_in(self._provisioning.findings())
        return (*(fault for fault in faults if fault not in self._reported), *lacking)

    def stop(self, timeout: float) -> None:
        """Stop fetching; what is half there is resumed next time. Waits `timeout` seconds."""
        if self._provisioning is not None:
            self._provisioning.stop(timeout)

    def _link_what_came(self, provisioning: Provisioning) -> list[Finding]:
        from bootstrap.models.background import show_to_comfyui

        self._linked = provisioning.ready
        return show_to_comfyui(self._settings, provisioning.results(), self._local_models)[1]
