"""Environment -> frozen `Settings`, read once; secrets never show in a repr.

`Settings` is the one place where variables are declared; a variable's name is its attribute's in
capitals. The tables of docs/settings.md are generated from it (`settings_table`), and a test
compares them. It is as long as that table: splitting it would need base classes to make one frozen
object again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootstrap.config import fields as kinds
from bootstrap.config.fields import Variable, as_data, declared_in, read_variables, table_of, var
from bootstrap.core.findings import Finding
from bootstrap.core.redact import Secret


@dataclass(frozen=True)
class Settings:
    """Everything the environment decides. Durations in seconds, sizes in bytes unless named MB."""

    # Where things are, and how ComfyUI is started.
    volume_path: Path | None = var(
        kinds.VOLUME,
        None,
        "Where the network volume is mounted",
        "`/runpod-volume`, else `/workspace`",
    )
    link_other_mount: bool = var(
        kinds.BOOLEAN,
        True,
        "Make `/workspace`, where a Pod mounts the volume, a link to it (or the reverse), so that "
        "a Pod's paths work here; only if nothing has that name",
    )
    comfyui_path: str | None = var(
        kinds.PATH_ON_VOLUME,
        None,
        "The folder of the ComfyUI to run, relative to the volume, such as `runpod-slim/ComfyUI`; "
        "`.` is the volume's root",
        "`ComfyUI` at the root, else the only one on the volume",
    )
    comfyui_dir: Path | None = var(
        kinds.ABSOLUTE_PATH,
        None,
        "A ComfyUI in the image, used when the volume has none; it gets the volume's models and "
        "custom nodes",
    )
    comfyui_python: Path | None = var(
        kinds.ABSOLUTE_PATH,
        None,
        "The interpreter that runs ComfyUI, with torch and the nodes' packages",
        "a venv in ComfyUI or on the volume, else `/opt/comfyui/bin/python`, else `python3`",
    )
    comfyui_args: tuple[str, ...] = var(
        kinds.COMFYUI_ARGUMENTS,
        (),
        "Further ComfyUI flags, quoted as in a shell; those that this ComfyUI does not know are "
        "skipped and reported",
    )
    gpu: str = var(
        kinds.one_of("auto", "required", "none"),
        "auto",
        "Whether a GPU is expected; `auto` decides by Runpod's variables and `/dev`",
    )
    comfyui_port: int = var(
        kinds.integer(0, 65535),
        8188,
        "ComfyUI's port on 127.0.0.1; if it is in use, or 0, a free one",
    )
    comfyui_instances: int | None = var(
        kinds.integer(1, 16),
        None,
        "How many ComfyUIs run side by side, each on its own GPU and with one job at a time",
        "the number of GPUs, `RUNPOD_GPU_COUNT`; 1 with `--cpu`",
    )
    comfyui_env_pass: tuple[str, ...] = var(
        kinds.NAMES,
        (),
        "Secret-looking variables to pass to ComfyUI and its nodes, such as `HF_TOKEN`; all "
        "others are withheld",
    )
    work_dir: Path | None = var(
        kinds.ABSOLUTE_PATH,
        None,
        "A folder on local disk for the worker's own files: temp, input, user, database",
        "a new folder in the system's temp folder",
    )
    boot_timeout: float = var(
        kinds.number(1, 3600),
        400.0,
        "Seconds until ComfyUI must answer; Runpod allows 420 for a cold start",
    )

    # Limits of a job, and its inputs.
    max_wait: float = var(
        kinds.number(1, 86400), 300.0, "Seconds a job may take unless it sets `max_wait`"
    )
    max_request_mb: float = var(
        kinds.number(0.01, 1000),
        20.0,
        "Larger requests are refused; Runpod itself accepts 10 (`/run`) or 20 (`/runsync`)",
    )
    max_reply_mb: float = var(
        kinds.number(0.01, 1000),
        10.0,
        "Files that would make a reply larger go to the bucket or stay on the volume; the reply "
        "says where",
    )
    max_input_mb: float = var(
        kinds.number(0.01, 100_000),
        500.0,
        "Largest file, in megabytes, to fetch from a request's URL",
    )
    input_timeout: float = var(
        kinds.number(1, 3600), 120.0, "Seconds for fetching all of a request's URLs"
    )
    allow_private_urls: bool = var(
        kinds.BOOLEAN,
        False,
        "A request's URLs (inputs, `s3Config`) may use http and private addresses",
    )

    # Where results go.
    keep_outputs: bool = var(
        kinds.BOOLEAN,
        True,
        "Keep results in `ComfyUI/output/` on the volume; if false, only those that can go "
        "nowhere else",
    )
    keep_outputs_days: float | None = var(
        kinds.number(0.01, 36500),
        None,
        "Days after which results kept by workers are removed; your own files never are",
    )
    keep_outputs_gb: float | None = var(
        kinds.number(0.001, 1_000_000),
        None,
        "Gigabytes of kept results above which the oldest are removed; your own files never are",
    )
    bucket_endpoint_url: str | None = var(
        kinds.URL,
        None,
        "An S3-compatible store for results, with or without the bucket in its address; with it "
        "and a key, results are delivered as URLs",
    )
    bucket_access_key_id: Secret | None = var(kinds.SECRET, None, "Its access key id")
    bucket_secret_access_key: Secret | None = var(kinds.SECRET, None, "Its secret access key")
    bucket_name: str | None = var(
        kinds.BUCKET_NAME,
        None,
        "The bucket",
        "the one in BUCKET_ENDPOINT_URL's host or path, else `MM-YY`, the month",
    )
    bucket_region: str | None = var(
        kinds.BUCKET_NAME, None, "Its region", "the one in BUCKET_ENDPOINT_URL, else `us-east-1`"
    )
    bucket_prefix: str | None = var(
        kinds.TEXT, None, "Key prefix for results; `{job_id}` in it becomes the job's id"
    )
    bucket_inputs: tuple[str, ...] = var(
        kinds.BUCKET_PLACES,
        (),
        "What requests may read with these credentials (`s3://bucket/key`): buckets, or "
        "`bucket/prefix/`, separated by commas",
        "nothing, except with a request's own `s3Config`",
    )
    bucket_url_expiry: int = var(
        kinds.integer(1, 604_800), 86_400, "Seconds that results' signed URLs are valid"
    )
    bucket_public_url: str | None = var(
        kinds.URL,
        None,
        "Where the bucket can be read without a signature; results' URLs then begin with it",
        "URLs are signed",
    )

    # The start: ComfyUI's code, its nodes' packages, weights, the warm-up.
    volume_timeout: float = var(
        kinds.number(1, 3600), 60.0, "Seconds for finding the volume and linking models"
    )
    stage_comfyui: bool = var(
        kinds.BOOLEAN,
        True,
        "Copy ComfyUI's code and custom nodes from the volume to local disk and run them there",
    )
    stage_pack_mb: float = var(
        kinds.number(0, 1_000_000),
        200.0,
        "In a custom node of more megabytes than this, the largest files are linked, not copied",
    )
    stage_timeout: float = var(
        kinds.number(1, 3600), 60.0, "Seconds for the copy; then ComfyUI runs from the volume"
    )
    packages: str = var(
        kinds.one_of("install", "report"),
        "install",
        "Packages that ComfyUI and its custom nodes require and ComfyUI's Python lacks or has in "
        "another version: `install` installs them once and keeps them on the volume, `report` "
        "only reports them",
        "install",
        "NODE_REQUIREMENTS",
    )
    packages_timeout: float = var(
        kinds.number(1, 3600),
        300.0,
        "Seconds for installing them; then ComfyUI starts without them",
        "300",
        "NODE_REQUIREMENTS_TIMEOUT",
    )
    nodes_manifest: str | None = var(
        kinds.TEXT,
        None,
        "Custom node packs the volume should have: a path on the volume or in the image, or JSON; "
        "a manifest or a ComfyUI-Manager snapshot",
        "`nodes.json` or `nodes.yaml` at the volume's root, if there",
    )
    nodes_timeout: float = var(
        kinds.number(1, 3600),
        180.0,
        "Seconds for fetching them; then ComfyUI starts without the missing ones",
    )
    prefetch_models: str = var(
        kinds.TEXT,
        "last",
        "Weights to read into memory while ComfyUI starts: `last` (those this endpoint used last), "
        "`none`, or file names below `models/` separated by commas",
    )
    warmup_workflow: str | None = var(
        kinds.TEXT,
        None,
        "A workflow to run before jobs are taken: a path on the volume or in the image, JSON, or "
        "`last` (the last one that succeeded here, reduced)",
    )
    warmup_timeout: float = var(kinds.number(1, 3600), 120.0, "Seconds for the warm-up")

    # Memory.
    memory_free_at: float = var(
        kinds.number(1, 100),
        90.0,
        "Percent of the container's memory at which ComfyUI is asked, between jobs, to free "
        "models and cached results; 100 is never",
    )
    memory_restart_at: float = var(
        kinds.number(1, 100),
        95.0,
        "Percent of memory, after that, at which ComfyUI is restarted before the next job; 100 is "
        "never",
    )

    # How jobs are served.
    response_format: str = var(
        kinds.one_of("native", "worker-comfyui"),
        "native",
        "The form of replies: this worker's own, or worker-comfyui's for its clients",
    )
    job_prefetch: int = var(
        kinds.integer(0, 8),
        1,
        "Jobs to take beyond the running one, so that ComfyUI never waits for work; 0 is one job "
        "at a time",
    )
    shutdown_grace: float = var(
        kinds.number(0, 3600),
        6.0,
        "Seconds that a running job may continue after SIGTERM; then it is stopped and answered. "
        "Keep it some seconds below the platform's own limit: 10 for Docker by default, not "
        "published for Runpod Serverless",
    )
    refresh_worker: bool = var(
        kinds.BOOLEAN, False, "Let Runpod stop the worker after each job; the next one starts cold"
    )
    log_level: str = var(
        kinds.one_of("debug", "info", "warning", "error"), "info", "How much the worker logs"
    )
    comfy_log_level: str | None = var(
        kinds.one_of("debug", "info", "warning", "error", "critical"),
        None,
        "How much ComfyUI logs: its `--verbose`, unless COMFYUI_ARGS has that; `debug` also shows "
        "the usual noise of its start",
    )
    comfy_org_api_key: Secret | None = var(
        kinds.SECRET,
        None,
        "Comfy.org key for API nodes, sent to ComfyUI with each workflow; a request's "
        "`comfy_org_api_key` takes precedence",
    )

    # Models, and what they are fetched with.
    models_manifest: str | None = var(
        kinds.TEXT,
        None,
        "Models the volume should have: the manifest's path on the volume or in the image, or JSON",
        "`models.json` or `models.yaml` at the volume's root, if there",
    )
    civitai_token: Secret | None = var(
        kinds.SECRET,
        None,
        "Civitai API key; goes to civitai.com and civitai.red only",
        "",
        "civitai_token",
    )
    hf_token: Secret | None = var(
        kinds.SECRET,
        None,
        "Hugging Face token, for gated and private repositories",
        "",
        "HUGGING_FACE_HUB_TOKEN",
    )
    download_token: Secret | None = var(
        kinds.SECRET, None, "Bearer token for model URLs at DOWNLOAD_TOKEN_HOST"
    )
    download_token_host: str | None = var(
        kinds.HOST, None, "The only host that gets DOWNLOAD_TOKEN, by https"
    )
    allow_private_download_urls: bool = var(
        kinds.BOOLEAN, False, "Model URLs may use http and private addresses"
    )
    allow_download_requests: bool = var(
        kinds.BOOLEAN,
        False,
        "Whether jobs may fetch models onto the volume, with this endpoint's tokens: by a request "
        'of type "download", or by an address in place of a model\'s file name',
    )
    model_hosts: tuple[str, ...] = var(
        kinds.HOSTS,
        (),
        "The only hosts that jobs may fetch models from; `*.example.com` includes all subdomains",
        "any public host",
    )
    model_cache_gb: float | None = var(
        kinds.number(0.001, 1_000_000),
        None,
        "Gigabytes of models fetched by address above which the least recently used are removed; "
        "your own files never are",
    )
    download_connections: int = var(
        kinds.integer(1, 64), 16, "Parallel connections per model, if its server allows"
    )
    download_max_mbps: float | None = var(
        kinds.number(0.1, 100_000), None, "Megabytes per second for all downloads together"
    )
    download_timeout: float = var(
        kinds.number(0, 86400),
        300.0,
        "Seconds the first job may wait for required models; then the worker starts degraded and "
        "continues the download",
    )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> tuple[Settings, tuple[Finding, ...]]:
        """Settings from an environment, and a finding for each value that is not allowed.

        An invalid value falls back to its default, so that the worker can start far enough to
        report it; the finding is an error, so that no workflow runs.
        """
        values, findings = read_variables(variables(), env)
        return _with_log_level(cls(**values)), findings

    def masked(self) -> dict[str, Any]:
        """The settings as JSON-ready data, secrets as `"***"`."""
        return {name: as_data(getattr(self, name)) for name in variables()}


def _with_log_level(settings: Settings) -> Settings:
    """COMFY_LOG_LEVEL is worker-comfyui's name for a flag that COMFYUI_ARGS may already have."""
    level, flags = settings.comfy_log_level, settings.comfyui_args
    if level is None or any(flag.partition("=")[0] == "--verbose" for flag in flags):
        return settings
    return replace(settings, comfyui_args=(*flags, "--verbose", level.upper()))


def read_settings() -> tuple[Settings, tuple[Finding, ...]]:
    """`Settings.from_env` for this process; the only place that reads `os.environ`."""
    return Settings.from_env(os.environ)


def variables() -> dict[str, Variable]:
    """Every declared variable by the name of its attribute, in order of declaration."""
    return declared_in(Settings)


def settings_table() -> str:
    """The variables as a Markdown table: name, meaning, default, allowed values."""
    return table_of(variables().values())
