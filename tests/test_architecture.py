"""The rooms and their directions, held against the syntax trees of all modules."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.sources import ROOT, all_needed_by, imports, modules, run_at_import

PURE = (
    "bootstrap.config.bucket",
    "bootstrap.volume.categories",
    "bootstrap.comfyui.command",
    "bootstrap.comfyui.exits",
    "bootstrap.core.findings",
    "bootstrap.config.fields",
    "bootstrap.volume.link_plan",
    "bootstrap.core.redact",
    "bootstrap.models.manifest_entry",
    "bootstrap.environment.pip_text",
    "bootstrap.environment.judge",
    "handler.content",
    "handler.deadline",
    "handler.download_entries",
    "handler.errors",
    "handler.missing_models",
    "handler.failures",
    "handler.headway",
    "handler.loaders",
    "handler.output_options",
    "handler.outputs",
    "handler.rejection",
    "handler.reply",
    "handler.request_bucket",
    "handler.request_files",
    "handler.requests",
    "handler.seeds",
    "handler.watch",
    "handler.workflow_models",
    "handler.worker_comfyui",
)
IMPURE_IMPORTS = {
    "aiohttp",
    "asyncio",
    "http",
    "os",
    "requests",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "urllib",
}


def top(name: str) -> str:
    return name.partition(".")[0]


def test_bootstrap_never_imports_the_handler() -> None:
    guilty = {n for n in modules() if top(n) == "bootstrap" and "handler" in map(top, imports(n))}
    assert guilty == set()


def test_neither_imports_tests_demo_scripts_or_benchmarks() -> None:
    others = {"tests", "demo", "scripts", "benchmarks"}
    assert {n: i for n in modules() if (i := others & set(map(top, imports(n))))} == {}


def test_torch_is_never_imported_into_the_worker() -> None:
    for name in all_needed_by({"handler.__main__", "bootstrap.__main__"}):
        assert not {"torch", "comfy", "folder_paths"} & set(map(top, imports(name))), name


@pytest.mark.parametrize("name", sorted(modules()))
def test_nothing_is_unpickled(name: str) -> None:
    assert not {"pickle", "marshal", "shelve", "dill", "joblib"} & set(map(top, imports(name)))


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_nothing_that_touches_the_world(name: str) -> None:
    assert not IMPURE_IMPORTS & {top(i) for i in imports(name) if i != "urllib.parse"}


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_opens_no_file(name: str) -> None:
    called = {
        node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call)
    }
    assert not called & {"open", "read_text", "read_bytes", "exists", "is_file", "is_dir", "stat"}


# A watcher of SIGTERM, which no event loop may be needed for; and starts of ComfyUI beside a reply.
OWN_THREADS = {"handler.blocking", "handler.shutdown", "handler.revival", "handler.volume_record"}


@pytest.mark.parametrize("name", sorted(n for n in modules() if top(n) == "handler"))
def test_jobs_block_only_in_the_pools_of_leaves(name: str) -> None:
    """No executor, no thread and no `to_thread` of a module's own: each was a way to hang."""
    used = {n.attr for n in ast.walk(modules()[name]) if isinstance(n, ast.Attribute)}
    used |= {n.id for n in ast.walk(modules()[name]) if isinstance(n, ast.Name)}
    assert not used & {"ThreadPoolExecutor", "to_thread", "run_in_executor"}
    assert name in OWN_THREADS or not used & {"Thread", "Timer"}


def test_what_the_doctor_uses_needs_nothing_but_the_standard_library() -> None:
    roots = {n for n in modules() if n.startswith("bootstrap.doctor.report.")}
    roots |= {
        "bootstrap.core.findings",
        "bootstrap.config.settings",
        "bootstrap.volume.layout",
        "bootstrap.volume.links",
    }
    foreign = {
        name: outside
        for name in all_needed_by(roots)
        if (outside := {i for i in imports(name) if top(i) not in {"bootstrap", *STANDARD}})
    }
    assert foreign == {}


STANDARD = sys.stdlib_module_names
DISTRIBUTIONS = {"PIL": "pillow", "cpuinfo": "py-cpuinfo", "yaml": "PyYAML"}


def test_what_the_worker_imports_is_what_its_requirements_name() -> None:
    """None is missing, and none is idle."""
    own = {"bootstrap", "handler", "scripts"}
    trees = [
        ast.parse(path.read_text("utf-8")) for name in own for path in (ROOT / name).rglob("*.py")
    ]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    named += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {DISTRIBUTIONS.get(top(n), top(n)) for n in named} - {*STANDARD, *own}
    lines = (ROOT / "requirements" / "worker.txt").read_text("utf-8").splitlines()
    assert imported == {line.partition("==")[0] for line in lines if "==" in line}


def test_the_guard_is_a_script_that_knows_nothing_of_the_project() -> None:
    assert {top(i) for i in imports("bootstrap.core.guard")} <= set(STANDARD)


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_looks_at_the_environment_when_it_is_imported(name: str) -> None:
    for node in run_at_import(modules()[name]):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Subscript)) else ""
        assert not text.startswith(("os.environ", "os.getenv", "environ[", "getenv(")), text


def test_importing_every_module_starts_nothing_and_says_nothing() -> None:
    script = (
        "import importlib, os, signal, sys, threading\n"
        "handlers = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert [signal.getsignal(n) for n in signal.valid_signals()] == handlers\n"
        "children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
        "assert not children, children\n"
        "assert 'torch' not in sys.modules and 'runpod' not in sys.modules\n"
    )
    others = [name for name in modules() if name != "handler.intake"]  # the SDK's own loop
    done = subprocess.run(
        [sys.executable, "-c", script, *others],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
