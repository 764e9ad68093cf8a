"""Pure: the `output` of a request -> how its results are to come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from handler.common.errors import wrong_type

DELIVERIES = ("base64", "s3", "volume")
FORMATS = ("png", "jpeg", "webp")
_FIELDS = ("delivery", "format", "quality", "metadata", "include_temp")


@dataclass(frozen=True)
class OutputOptions:
    """`delivery` None: to the bucket where there is one, else in the reply. `format` None: as the
    workflow saves it; `quality` 1 to 100 for jpeg and webp (where 100 is lossless). Without
    `metadata` pictures lose the workflow they carry; `include_temp` adds previews."""

    delivery: str | None = None
    format: str | None = None
    quality: int = 90
    metadata: bool = True
    include_temp: bool = False

    @property
    def changes_images(self) -> bool:
        """Is a picture to be written anew?"""
        return self.format is not None or not self.metadata


def read_options(given: object) -> tuple[OutputOptions, tuple[str, ...]]:
    """The options, and a warning for fields that do not exist. Raises JobError."""
    if given is None:
        return OutputOptions(), ()
    if not isinstance(given, Mapping):
        raise wrong_type("output", 'an object such as {"delivery": "base64"}', given)
    quality = given.get("quality", 90)
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise wrong_type("output.quality", "a whole number from 1 to 100", quality)
    options = OutputOptions(
        delivery=_one_of(given, "delivery", DELIVERIES),
        format=_one_of(given, "format", FORMATS),
        quality=quality,
        metadata=_flag(given, "metadata", True),
        include_temp=_flag(given, "include_temp", False),
    )
    unknown = sorted(str(key) for key in given if key not in _FIELDS)
    warning = f"ignored unknown fields of output: {', '.join(unknown)[:300]}"
    return options, ((warning,) if unknown else ())


def _one_of(given: Mapping[object, object], name: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or value not in allowed):
        raise wrong_type(f"output.{name}", f"one of {', '.join(allowed)}", value)
    return value


def _flag(given: Mapping[object, object], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise wrong_type(f"output.{name}", "true or false", value)
    return value
