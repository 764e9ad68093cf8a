"""How one job's results are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootstrap.config.bucket import Bucket
from handler.deadline import Deadline
from handler.output_options import OutputOptions


@dataclass(frozen=True)
class DeliveryOptions:
    """`mark` is a word that only this job uses."""

    mark: str
    deadline: Deadline
    options: OutputOptions = field(default_factory=OutputOptions)
    bucket: Bucket | None = None

    @property
    def destination(self) -> str:
        """`base64`, `s3` or `volume`."""
        return self.options.delivery or ("s3" if self.bucket is not None else "base64")
