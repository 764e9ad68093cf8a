"""Environment -> frozen `Settings`, read once; secrets never show in a repr.

`Settings` is the one place where variables are declared. The table in the README is made from
it (`settings_table`), and a test holds the two together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bootstrap import kinds
from bootstrap.findings import Finding, error
from bootstrap.kinds import Kind, Secret

CODES = {"settings.invalid": "An environment variable has a value that is not allowed"}


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name and aliases, what it means and what it may hold."""

    name: str
    kind: Kind
    meaning: str
    default: str
    aliases: tuple[str, ...] = ()

    def raw(self, env: Mapping[str, str]) -> tuple[str, str] | None:
        """(name, value) of the first spelling that is set and not blank."""
        for name in (self.name, *self.aliases):
            if env.get(name, "").strip():
                return name, env[name].strip()
        return None


def _var(name: str, kind: Kind, default: Any, meaning: str, shown: str = "", *aliases: str) -> Any:
    variable = Variable(name, kind, meaning, shown or _shown(default), aliases)
    return field(default=default, metadata={"variable": variable})


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "–"
    return str(default).lower() if isinstance(default, bool) else str(default)


@dataclass(frozen=True)
class Settings:
    """Everything the environment decides. Durations in seconds, sizes in bytes unless named MB."""

    volume_path: Path | None = _var(
        "VOLUME_PATH",
        kinds.ABSOLUTE_PATH,
        None,
        "Where the network volume is mounted",
        "`/runpod-volume`, else `/workspace`",
    )
    comfyui_dir: Path | None = _var(
        "COMFYUI_DIR",
        kinds.ABSOLUTE_PATH,
        None,
        "A ComfyUI in the image, used when the volume has none in `ComfyUI/`",
    )
    comfyui_python: Path | None = _var(
        "COMFYUI_PYTHON",
        kinds.ABSOLUTE_PATH,
        None,
        "The interpreter ComfyUI runs with (torch and the nodes' packages live there)",
        "a venv in ComfyUI or on the volume, else `/opt/comfyui/bin/python`, else `python3`",
    )
    comfyui_args: tuple[str, ...] = _var(
        "COMFYUI_ARGS",
        kinds.COMFYUI_ARGUMENTS,
        (),
        "Further ComfyUI flags, quoted as in a shell; those this ComfyUI does not know are "
        "left out and reported",
    )
    gpu: str = _var(
        "GPU",
        kinds.one_of("auto", "required", "none"),
        "auto",
        "Whether a GPU must be there; `auto` asks Runpod's variables and `/dev`",
    )
    comfyui_port: int = _var(
        "COMFYUI_PORT",
        kinds.integer(0, 65535),
        8188,
        "ComfyUI's port on 127.0.0.1; a free one is taken when it is in use; 0 is any free one",
    )
    comfyui_env_pass: tuple[str, ...] = _var(
        "COMFYUI_ENV_PASS",
        kinds.NAMES,
        (),
        "Names of secret-looking variables that ComfyUI's nodes do need, such as `HF_TOKEN`; "
        "all others are kept from it",
    )
    work_dir: Path | None = _var(
        "WORK_DIR",
        kinds.ABSOLUTE_PATH,
        None,
        "Local disk for what this worker writes for itself: temp, input, user, database",
        "a new folder in the system's temp folder",
    )
    boot_timeout: float = _var(
        "BOOT_TIMEOUT",
        kinds.number(1, 3600),
        400.0,
        "Seconds ComfyUI may take until it answers; Runpod gives a cold start 420",
        "400",
    )
    max_wait: float = _var(
        "MAX_WAIT",
        kinds.number(1, 86400),
        300.0,
        "Seconds a job may take unless it says otherwise with `max_wait`",
        "300",
    )
    max_request_mb: float = _var(
        "MAX_REQUEST_MB",
        kinds.number(0.01, 1000),
        20.0,
        "A larger request is refused; Runpod itself takes 10 (`/run`) or 20 (`/runsync`)",
        "20",
    )
    max_reply_mb: float = _var(
        "MAX_REPLY_MB",
        kinds.number(0.01, 1000),
        10.0,
        "Files that would make a reply larger stay on the volume and are named instead",
        "10",
    )

    models_manifest: str | None = _var(
        "MODELS_MANIFEST",
        kinds.TEXT,
        None,
        "Models to have: a path on the volume or in the image, or the manifest itself as JSON",
        "`models.json` or `models.yaml` at the volume's root, when there",
    )
    civitai_token: Secret | None = _var(
        "civitai_token",
        kinds.SECRET,
        None,
        "Civitai API key; goes to civitai.com and civitai.red only",
        "",
        "CIVITAI_TOKEN",
    )
    hf_token: Secret | None = _var(
        "HF_TOKEN",
        kinds.SECRET,
        None,
        "Hugging Face token, for gated and private repositories",
        "",
        "HUGGING_FACE_HUB_TOKEN",
    )
    download_token: Secret | None = _var(
        "DOWNLOAD_TOKEN",
        kinds.SECRET,
        None,
        "Bearer token for model URLs at the one host DOWNLOAD_TOKEN_HOST names",
    )
    download_token_host: str | None = _var(
        "DOWNLOAD_TOKEN_HOST",
        kinds.HOST,
        None,
        "The host that DOWNLOAD_TOKEN goes to, by https",
    )
    allow_private_download_urls: bool = _var(
        "ALLOW_PRIVATE_DOWNLOAD_URLS",
        kinds.BOOLEAN,
        False,
        "Model URLs may use http and lead to private addresses",
    )
    download_connections: int = _var(
        "DOWNLOAD_CONNECTIONS",
        kinds.integer(1, 64),
        16,
        "Parallel connections a model is downloaded with, where its server allows",
    )
    download_max_mbps: float | None = _var(
        "DOWNLOAD_MAX_MBPS",
        kinds.number(0.1, 100_000),
        None,
        "Megabytes per second that all downloads together may take",
    )
    download_timeout: float = _var(
        "DOWNLOAD_TIMEOUT",
        kinds.number(0, 86400),
        300.0,
        "Seconds required models may hold back the first job; then the worker starts degraded "
        "and goes on downloading",
        "300",
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> tuple[Settings, tuple[Finding, ...]]:
        """Settings from an environment, and a finding for each value that is not allowed.

        A wrong value falls back to its default, so that a worker can still start far enough to
        say what is wrong; the finding is an error, so that it takes no jobs.
        """
        values: dict[str, Any] = {}
        findings: list[Finding] = []
        for attribute, variable in variables().items():
            given = variable.raw(env)
            if given is None:
                continue
            name, text = given
            try:
                values[attribute] = variable.kind.parse(text)
            except ValueError as problem:
                findings.append(_wrong(name, text, variable.kind, str(problem)))
        return cls(**values), tuple(findings)

    def masked(self) -> dict[str, Any]:
        """The settings as JSON-ready data, secrets as `"***"`."""
        return {name: _masked(getattr(self, name)) for name in variables()}


def read_settings() -> tuple[Settings, tuple[Finding, ...]]:
    """`Settings.from_env` of this process; the only place that looks at `os.environ`."""
    return Settings.from_env(os.environ)


def variables() -> dict[str, Variable]:
    """Every declared variable by the name of its attribute, in order of declaration."""
    return {f.name: f.metadata["variable"] for f in fields(Settings)}


def settings_table() -> str:
    """The variables as a Markdown table: name, meaning, default, allowed values."""
    rows = ["| Variable | Meaning | Default | Allowed |", "|---|---|---|---|"]
    for v in variables().values():
        names = " or ".join(f"`{name}`" for name in (v.name, *v.aliases))
        rows.append(f"| {names} | {v.meaning} | {v.default} | {v.kind.allowed} |")
    return "\n".join(rows)


def _wrong(name: str, text: str, kind: Kind, problem: str) -> Finding:
    shown = "***" if kind.secret else repr(text[:80])
    why = f" ({problem})" if problem else ""
    return error(
        "settings.invalid",
        f"{name} is {shown}{why}; allowed: {kind.allowed}.",
        f"Set {name} to {kind.allowed}, or remove it to get the default, "
        "in the endpoint's environment variables.",
        name=name,
    )


def _masked(value: Any) -> Any:
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, tuple):
        return [_masked(v) for v in value]
    return str(value) if isinstance(value, Path) else value
