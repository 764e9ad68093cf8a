"""What ComfyUI is to run, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from handler import watch
from handler.headway import Step
from handler.request.workflow import Workflow


@dataclass(frozen=True)
class Prompt:
    """What ComfyUI is to run; only what `targets` need, where there are any. `extra_data` may hold
    secrets for nodes; it is sent to ComfyUI and nowhere else. `tell` hears how far it is, `saved`
    what a node reports that is through, in the form of the history's outputs."""

    workflow: Workflow
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    targets: tuple[str, ...] | None = None
    tell: Callable[[Step], None] = lambda _: None
    saved: Callable[[Mapping[str, Any]], None] = lambda _: None


@dataclass(frozen=True)
class Ran:
    """A prompt that ran to its end; `began` (seconds since 1970) is not later than ComfyUI began
    with it, `seconds` what it took."""

    ended: watch.Ended
    warnings: list[str]
    began: float
    seconds: float
