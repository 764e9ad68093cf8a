"""Reports as `check_volume.py --json` writes them: of a healthy, a broken and a hostile volume."""

from __future__ import annotations

from typing import Any

from bootstrap.core.findings import Finding, error, host_error, info, ok, warning

GB = 1024**3
MB = 1024**2


def report(findings: list[Finding], **facts: Any) -> dict[str, Any]:
    """A report of these findings and facts."""
    worst = max((f.severity.rank for f in findings), default=0)
    return {
        "version": 1,
        "status": {2: "warning", 3: "error"}.get(worst, "ok"),
        "at": "2026-03-02T09:41:00Z",
        "seconds": 2.41,
        "findings": [f.as_dict() for f in findings],
        "facts": facts,
    }


def category(
    name: str, count: int, size: float, *largest: tuple[str, float, str]
) -> dict[str, Any]:
    """One category of an inventory; sizes in GB, each of the largest with its state."""
    return {
        "name": name,
        "known": True,
        "folders": [f"/runpod-volume/models/{name}"],
        "count": count,
        "size": int(size * GB),
        "other_count": 0,
        "other_size": 0,
        "largest": [
            {"path": f"{name}/{path}", "size": int(gb * GB), "state": state}
            for path, gb, state in largest
        ],
    }


def models(*, broken: bool = False) -> dict[str, Any]:
    """What a volume in use holds; `broken` breaks two of its files."""
    cut = "truncated" if broken else "good"
    categories = [
        category(
            "diffusion_models",
            7,
            74.2,
            ("flux1-dev-fp8.safetensors", 16.1, "good"),
            ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", 14.3, "good"),
            ("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", 14.3, cut),
            ("qwen_image_fp8_e4m3fn.safetensors", 13.9, "good"),
            ("hunyuan_video_720_cfgdistill_fp8.safetensors", 12.3, "good"),
        ),
        category(
            "checkpoints",
            9,
            48.6,
            ("sd_xl_base_1.0.safetensors", 6.5, "good"),
            ("juggernautXL_v9.safetensors", 6.6, "page" if broken else "good"),
            ("realvisxlV50.safetensors", 6.5, "good"),
            ("ponyDiffusionV6XL.safetensors", 6.5, "good"),
            ("sd3.5_large.safetensors", 11.0, "good"),
        ),
        category(
            "text_encoders",
            4,
            17.0,
            ("t5xxl_fp16.safetensors", 9.1, "good"),
            ("umt5_xxl_fp8_e4m3fn_scaled.safetensors", 6.2, "good"),
        ),
        category("loras", 214, 31.4, ("detail_tweaker_xl.safetensors", 0.9, "good")),
        category("controlnet", 6, 11.8, ("diffusers_xl_canny_full.safetensors", 2.3, "good")),
        category("upscale_models", 11, 0.7, ("4x-UltraSharp.pth", 0.063, "good")),
        category("vae", 5, 1.4, ("ae.safetensors", 0.31, "good")),
        category("clip_vision", 2, 3.1, ("CLIP-ViT-H-14.safetensors", 2.4, "good")),
        category("insightface", 9, 0.6),
        category("embeddings", 31, 0.02),
        category("gligen", 0, 0.0),
        category("style_models", 0, 0.0),
    ]
    categories[1]["other_count"], categories[1]["other_size"] = 12, int(1.8 * GB)
    return {
        "roots": ["/runpod-volume/models"],
        "files": 330,
        "models": 298,
        "size": sum(c["size"] + c["other_size"] for c in categories),
        "states": {"good": 296},
        "categories": categories,
        "categories_left_out": 0,
        "unreadable": 0,
        "complete": True,
        "headers": True,
        "seconds": 1.9,
    }


def machine(*, gpu: bool = True) -> dict[str, Any]:
    """A worker with one GPU, or with none."""
    device = {
        "index": 0,
        "name": "NVIDIA RTX A5000",
        "memory_total": 24 * GB,
        "memory_free": int(23.6 * GB),
        "temperature": 34,
        "throttle": [],
        "visible": True,
    }
    return {
        "gpu": {
            "devices": [device] if gpu else [],
            "driver_version": "570.124.06" if gpu else None,
            "cuda_driver_version": "12.8" if gpu else None,
        },
        "memory": {"limit": 50 * GB, "available": 46 * GB, "source": "cgroup v2"},
        "cpu": {"quota": 9.0, "usable": 64, "host": 64, "source": "cgroup v2"},
        "shm": {"path": "/dev/shm", "total": 24 * GB, "free": 24 * GB, "read_only": False},
        "root_disk": {"path": "/", "total": 20 * GB, "free": 11 * GB, "read_only": False},
        "temp": {"path": "/tmp", "total": 20 * GB, "free": 11 * GB, "read_only": False},
        "open_files": [1048576, 1048576],
        "torch": {"version": "2.9.1+cu128", "cuda": "12.8"},
        "python": "3.12.3",
        "kernel": "6.8.0-60-generic",
        "architecture": "x86_64",
        "problems": [],
    }


VOLUME = {
    "root": "/runpod-volume",
    "space": {"total": 500 * GB, "free": 262 * GB, "inodes_total": 0, "inodes_free": 0},
}
TIMELINE = [
    {"name": "find volume", "start": 0.0, "seconds": 0.214, "outcome": "ok"},
    {"name": "look at machine", "start": 0.01, "seconds": 0.62, "outcome": "ok"},
    {"name": "link models", "start": 0.214, "seconds": 0.09, "outcome": "ok"},
    {"name": "copy ComfyUI's code", "start": 0.3, "seconds": 2.9, "outcome": "ok"},
    {"name": "read weights ahead", "start": 0.31, "seconds": 9.4, "outcome": "ok"},
    {"name": "start ComfyUI", "start": 3.2, "seconds": 0.4, "outcome": "ok"},
    {"name": "ComfyUI ready", "start": 3.6, "seconds": 8.1, "outcome": "ok"},
]
FAILED_TIMELINE = [*TIMELINE[:-1], {**TIMELINE[-1], "outcome": "TimeoutError"}]


def healthy() -> dict[str, Any]:
    """A volume with nothing to fix, and one note."""
    findings = [
        ok("volume.good", "The volume is mounted at /runpod-volume (nfs4), 262 GB free of 500 GB."),
        ok("volume.writable", "Writing a tiny file to the volume took 0.02 s."),
        ok("models.good", "298 models in 10 categories, 190 GB; all 298 headers hold."),
        info(
            "models.pickle",
            "11 files (models/upscale_models/4x-UltraSharp.pth and 10 more) are pickles: old "
            "torch versions and some nodes run code in them when they are loaded.",
            "Where the author offers a .safetensors of the same model, use that; keep only "
            "pickles from people you trust.",
        ),
        ok("comfyui.good", "ComfyUI 0.3.75 at /runpod-volume/ComfyUI, 14 custom nodes."),
        ok("nodes.good", "The requirements of all 14 custom nodes are installed."),
        ok("gpu.good", "NVIDIA RTX A5000 answers; 23.6 GB free of 24.0 GB, driver 570.124.06."),
        ok("memory.good", "46 GB can be used of 50 GB (cgroup v2)."),
        ok("env.alloc_conf", "PYTORCH_CUDA_ALLOC_CONF is max_split_size_mb:256."),
    ]
    made = report(findings, volume=VOLUME, models=models(), machine=machine())
    return {**made, "timeline": TIMELINE}


def broken() -> dict[str, Any]:
    """A bit of everything that can go wrong."""
    node = "/workspace/ComfyUI/custom_nodes/ComfyUI-Impact-Pack"
    made = report(
        [
            *_of_the_volume(),
            error(
                "nodes.requirements_missing",
                "ComfyUI-Impact-Pack needs segment-anything and ultralytics>=8.3.162, which are "
                "not installed in /runpod-volume/ComfyUI/venv.",
                "On a Pod with this volume, which is /workspace there: "
                f"`/workspace/ComfyUI/venv/bin/python -m pip install -r {node}/requirements.txt`.",
            ),
            host_error(
                "gpu.not_answering",
                "The GPU does not answer: cuInit failed with 999 (unknown error).",
                "Nothing to do if Runpod uses another machine; if it stays, exclude the host.",
            ),
            ok("memory.good", "46 GB can be used of 50 GB (cgroup v2)."),
            ok("machine.clock", "The clock is right to the second."),
            warning(
                "env.alloc_conf_unknown_key",
                "PYTORCH_CUDA_ALLOC_CONF has the key `max_split_size`, which torch does not know: "
                "it raises at its first allocation.",
                "Write `max_split_size_mb` in place of it in the endpoint's environment.",
            ),
            info("doctor.part_slow", "Looking at packages was not done in its time."),
        ],
        volume=VOLUME,
        models=models(broken=True),
        machine=machine(gpu=False),
    )
    return {**made, "timeline": FAILED_TIMELINE}


def _of_the_volume() -> list[Finding]:
    folder = "/workspace/models/checkpoints"
    return [
        error(
            "volume.models_misplaced",
            "Models lie straight under the volume, in /runpod-volume/checkpoints, where ComfyUI "
            "does not look: 4 files, 26 GB.",
            f"On a Pod with this volume, which is /workspace there: `mkdir -p {folder} && mv -n -- "
            f"/workspace/checkpoints/* {folder}/ && rmdir -- /workspace/checkpoints`.",
        ),
        ok("volume.writable", "Writing a tiny file to the volume took 0.02 s."),
        warning(
            "models.truncated",
            "models/diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors is cut off: "
            "11,400,212,480 bytes instead of 15,354,000,000.",
            "If nothing is downloading there now: `rm -- /runpod-volume/models/diffusion_models/"
            "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors`. Then download it again.",
        ),
        warning(
            "models.web_page",
            "8 files (models/checkpoints/juggernautXL_v9.safetensors and 7 more) are web pages, "
            "not models. The site required a login.",
            f"`rm -- {folder}/juggernautXL_v9.safetensors '{folder}/my file (1).safetensors'`, "
            'then download it again with a token, for instance `curl -fL -H "Authorization: Bearer '
            '$CIVITAI_TOKEN" -o FILE URL` (HF_TOKEN for Hugging Face).',
            paths=[f"{folder}/file_{i}.safetensors" for i in range(8)],
            count=8,
        ),
    ]


_HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</style></svg></title><b>bold</b>",
    "\u202egnp.exe\u2066\u200b\x1b[31m\x00\ud800",
    "]]>--><!--&lt;&#0;`rm -rf /`",
    "W" * 300,
    "模型" * 150,
    "مرحبا بالعالم " * 20,
)


def hostile(count: int = 40) -> dict[str, Any]:
    """Every text is an injection, every number is wrong."""
    findings = [
        Finding(
            code=f"volume.{name}" if i % 2 else name,
            severity=error("a.b", "m", "f").severity,
            message=f"{name} {'x' * 5000}",
            fix=f"rm -- {name}" if i % 3 else f"Type `rm -- '{name}'` {name}",
            host_fault=True,
            details={"paths": [name] * 50, "count": 10**30},
        )
        for i, name in enumerate(_HOSTILE * (count // 8))
    ]
    categories = [
        category(f"{n}{i}", 9, 5, (n, 3, n), ("b", 1, "x")) for n in _HOSTILE for i in "ab"
    ]
    hostile_machine = {**machine(), "python": _HOSTILE[0], "problems": list(_HOSTILE)}
    made = report(
        findings,
        volume={"root": _HOSTILE[1], "space": {"total": float("inf"), "free": -1}},
        models={**models(), "categories": [*categories, {"size": "9", "name": 3, "largest": 7}]},
        machine=hostile_machine,
    )
    stages = [{"name": n, "start": i, "seconds": 2, "outcome": n} for i, n in enumerate(_HOSTILE)]
    return {**made, "at": _HOSTILE[0], "timeline": stages}
