"""Allocator settings: the parser compared with torch, and each finding with its fix."""

from __future__ import annotations

import pytest

from bootstrap.comfyui import choose_allocator
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks import allocator
from bootstrap.doctor.checks.allocator import check_allocator
from bootstrap.doctor.facts.machine import Preload
from bootstrap.environment.python_probe import TorchBuild
from tests.support.check_cases import HEALTHY, NO_GPU, Case, assert_case, look

DYNAMIC, BY_WORKER = "env.allocator_dynamic", "env.allocator_native"
OK, INFO, WARNING, ERROR = Severity
OLD, NEW = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
NATIVE_FLAG = {"COMFYUI_ARGS": "--disable-cuda-malloc"}
GOOD = {OLD: "max_split_size_mb:256", **NATIVE_FLAG}
OLD_TORCH = {"torch": TorchBuild("2.8.0+cu128", "12.8")}
TCMALLOC = Preload("/usr/lib/libtcmalloc.so.4", True)
GONE = Preload("/opt/libjemalloc.so", False)

CASES = [
    Case("env.alloc_conf_good", OK, env=GOOD),
    Case(
        "env.alloc_conf_unknown_key", ERROR, env={**GOOD, OLD: "max_splt_size_mb:256"}, cured=GOOD
    ),
    Case("env.alloc_conf_unknown_key", WARNING, env={**GOOD, OLD: "quantum_mode:3"}, cured=GOOD),
    Case("env.alloc_conf_value", ERROR, env={**GOOD, OLD: "max_split_size_mb:20"}, cured=GOOD),
    Case("env.alloc_conf_syntax", ERROR, env={**GOOD, OLD: "backend"}, cured=GOOD),
    Case("env.alloc_conf_syntax", WARNING, env={OLD: ""}),
    Case("env.alloc_conf_syntax", WARNING, env={OLD: "pinned_num_register_threads:4,"}),
    Case("env.alloc_conf_both", WARNING, env={**GOOD, NEW: "max_split_size_mb:512"}, cured=GOOD),
    Case(
        "env.alloc_conf_name",
        WARNING,
        OLD_TORCH,
        {**NATIVE_FLAG, NEW: "max_split_size_mb:512"},
        OLD_TORCH,
        GOOD,
    ),
    Case("env.alloc_conf_no_effect", WARNING, env={OLD: "max_split_size_mb:256"}, cured=GOOD),
    Case("env.alloc_conf_no_effect", WARNING, env={OLD: "max_split_size_mb:256"}),
    Case("env.alloc_conf_backend", WARNING, env={OLD: "backend:native"}, cured=NATIVE_FLAG),
    Case("env.arena_max_unset", INFO, env={"MALLOC_ARENA_MAX": None}),
    Case("env.arena_max_value", WARNING, env={"MALLOC_ARENA_MAX": "two"}),
    Case("env.preload", INFO, {"preloads": (TCMALLOC,)}),
    Case("env.preload_missing", WARNING, {"preloads": (GONE,)}),
    Case(
        "env.preload_several",
        WARNING,
        {"preloads": (TCMALLOC, Preload("libjemalloc.so.2", True))},
        fixed={"preloads": (TCMALLOC,)},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_finding(case: Case) -> None:
    assert_case(case)


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} | {DYNAMIC, BY_WORKER} == set(allocator.CODES)


# Flags of ComfyUI's 0.3.75 and 0.33.
OLD_FLAGS = frozenset({"--cuda-malloc", "--disable-cuda-malloc", "--highvram", "--cpu"})
NEW_FLAGS = OLD_FLAGS | {"--disable-dynamic-vram", "--enable-dynamic-vram"}
BOTH = (("--disable-cuda-malloc",), {OLD: "max_split_size_mb:256"})
NOTHING: tuple[tuple[str, ...], dict[str, str]] = ((), {})


@pytest.mark.parametrize(
    ("known", "args", "torch", "env", "added", "code"),
    [
        (OLD_FLAGS, (), "2.8.0+cu128", {}, BOTH, "env.allocator_native"),
        (NEW_FLAGS, (), "2.10.0+cu130", {}, NOTHING, "env.allocator_dynamic"),
        (NEW_FLAGS, (), None, {}, NOTHING, "env.allocator_dynamic"),
        (NEW_FLAGS, (), "2.7.1+cu126", {}, BOTH, "env.allocator_native"),
        (NEW_FLAGS, ("--highvram",), "2.10.0", {}, BOTH, "env.allocator_native"),
        (NEW_FLAGS, ("--disable-dynamic-vram",), "2.10.0", {}, BOTH, "env.allocator_native"),
        (
            NEW_FLAGS,
            ("--highvram", "--enable-dynamic-vram"),
            "2.7.0",
            {},
            NOTHING,
            "env.allocator_dynamic",
        ),
        (NEW_FLAGS, (), "2.10.0", {OLD: "max_split_size_mb:512"}, NOTHING, "env.allocator_dynamic"),
        (OLD_FLAGS, (), "2.8.0", {OLD: "max_split_size_mb:512"}, NOTHING, None),
        (OLD_FLAGS, ("--cuda-malloc",), "2.8.0", {}, NOTHING, None),
        (OLD_FLAGS, ("--cpu",), "2.8.0", {}, NOTHING, None),
        (frozenset({"--cpu"}), (), "2.0.1", {}, NOTHING, None),
    ],
)
def test_the_allocator_by_version_flags_and_torch(
    known: frozenset[str],
    args: tuple[str, ...],
    torch: str | None,
    env: dict[str, str],
    added: tuple[tuple[str, ...], dict[str, str]],
    code: str | None,
) -> None:
    chosen = choose_allocator(known, args, torch, env)
    assert (chosen.args, dict(chosen.env)) == added
    settings = Settings(gpu="required", comfyui_args=args)
    found = check_allocator(HEALTHY, settings, env, chosen)
    reported = [f for f in found if f.code.startswith("env.allocator_")]
    assert [f.code for f in reported] == ([code] if code else [])
    if env and code:
        assert "Remove" in reported[0].fix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_split_size_mb:256",
        " max_split_size_mb : 256 , garbage_collection_threshold:0.8,",
        "roundup_power2_divisions:[256:1,512:2,1024:4,>:8],expandable_segments:True",
        "roundup_power2_divisions:4",
        "backend:cudaMallocAsync",
        "expandable_segments:False,pinned_use_cuda_host_register:True",
        "pinned_num_register_threads:8,per_process_memory_fraction:1.0",
        "max_split_size_mb:21",
        "pinned_num_register_threads:128",
    ],
)
def test_what_torch_takes(text: str) -> None:
    assert refused(text) == []


def refused(text: str) -> list[Finding]:
    found = look({}, {OLD: text, **NATIVE_FLAG})
    return [f for f in found if f.severity is not OK and f.code.startswith("env.alloc_conf")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("max_split_size_mb:20", "value"),
        ("max_split_size_mb:-1", "value"),
        ("max_split_size_mb:256MB", "value"),
        ("garbage_collection_threshold:1.0", "value"),
        ("garbage_collection_threshold:nan", "value"),
        ("garbage_collection_threshold:80%", "value"),
        ("per_process_memory_fraction:1.1", "value"),
        ("expandable_segments:true", "value"),
        ("backend:cudaMallocSync", "value"),
        ("backend:native:native", "value"),
        ("roundup_power2_divisions:3", "value"),
        ("roundup_power2_divisions:[256:3]", "value"),
        ("roundup_power2_divisions:[256:4", "value"),
        ("pinned_num_register_threads:6", "value"),
        ("pinned_num_register_threads:256", "value"),
        ("roundup_power2_divisions:256:4]", "value"),
        (",", "syntax"),
        ("pinned_reserve_segment_size_mb:0", "value"),
        ("max_split_size_mb:", "syntax"),
        ("max_split_size_mb", "syntax"),
        (",backend:native", "syntax"),
        ("backend:native,,expandable_segments:True", "syntax"),
        ("max_split_size_mb=256", "unknown_key"),
        ("Max_Split_Size_MB:256", "unknown_key"),
        ('"max_split_size_mb:256"', "unknown_key"),
    ],
)
def test_what_torch_refuses(text: str, kind: str) -> None:
    assert [f.code for f in refused(text)] == [f"env.alloc_conf_{kind}"]


def test_a_typo_is_answered_with_the_nearest_key() -> None:
    for typo in ("max_split_size", "Max_Split_Size_MB", "max_split_size_mb=256"):
        (finding,) = refused(f"{typo}:1" if "=" not in typo else typo)
        assert finding.severity is ERROR
        assert finding.fix.startswith("Write `max_split_size_mb` in place of it"), typo
    assert "Write" not in refused("quantum_mode:3")[0].fix


def test_without_a_gpu_a_typo_stops_nothing() -> None:
    env = {OLD: "max_splt_size_mb:256", "RUNPOD_GPU_COUNT": "0", "COMFYUI_ARGS": "--cpu"}
    (finding,) = [f for f in look({"gpu": NO_GPU}, env) if f.code.startswith("env.alloc_conf")]
    assert finding.severity is WARNING


def test_the_new_name_is_not_what_comfyui_appends_to() -> None:
    found = look({}, {NEW: "max_split_size_mb:256"})
    assert {f.code for f in found if f.code.startswith("env.alloc")} == {"env.alloc_conf_good"}
    found = look({}, {NEW: "backend:cudaMallocAsync,max_split_size_mb:256"})
    assert {f.code for f in found if f.code.startswith("env.alloc")} == {"env.alloc_conf_no_effect"}


def test_a_preloaded_allocator_needs_no_arenas() -> None:
    found = look({"preloads": (TCMALLOC,)}, {"MALLOC_ARENA_MAX": None})
    assert "env.arena_max_unset" not in {f.code for f in found}
    found = look({"preloads": (GONE,)}, {"MALLOC_ARENA_MAX": None})
    assert "env.arena_max_unset" in {f.code for f in found}


def test_arenas_must_be_more_than_none() -> None:
    assert "env.arena_max_value" in {f.code for f in look({}, {"MALLOC_ARENA_MAX": "0"})}
    assert "env.arena_max_value" not in {f.code for f in look({}, {"MALLOC_ARENA_MAX": "1"})}


@pytest.mark.parametrize(
    ("version", "known"), [("2.9.0", True), ("2.10.1+cu130", True), ("2.8", False), ("dev", True)]
)
def test_since_which_torch_the_new_name_counts(version: str, known: bool) -> None:
    found = look({"torch": TorchBuild(version, "12.8")}, {NEW: "backend:native"})
    assert ("env.alloc_conf_name" not in {f.code for f in found}) is known
    assert known or any(version in f.message for f in found if f.code == "env.alloc_conf_name")


def test_the_fix_says_to_remove_the_conflicting_backend() -> None:
    (plain,) = [f for f in look({}, {OLD: "max_split_size_mb:99"}) if "no_effect" in f.code]
    asked = {OLD: "max_split_size_mb:99,backend:cudaMallocAsync"}
    (named,) = [f for f in look({}, asked) if "no_effect" in f.code]
    assert "remove `backend:cudaMallocAsync`" in named.fix
    assert "remove `backend" not in plain.fix
