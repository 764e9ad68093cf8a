"""The rooms and their directions, held against the syntax trees of all modules."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.sources import ROOT, all_needed_by, imports, modules, run_at_import, trees

# The rooms of bootstrap/. Arrows go down this list, never up: a room may import those behind it.
ROOMS = "boot doctor environment models comfyui volume net config core".split()
# What lies in no room: the package, its command, and what the image's HEALTHCHECK runs.
TOP = {"bootstrap", "bootstrap.__main__", "bootstrap.healthcheck"}

PURE = (
    "bootstrap.comfyui.allocator",
    "bootstrap.comfyui.command",
    "bootstrap.comfyui.exits",
    "bootstrap.comfyui.stacks",
    "bootstrap.config.bucket",
    "bootstrap.config.fields",
    "bootstrap.core.findings",
    "bootstrap.core.redact",
    "bootstrap.environment.judge",
    "bootstrap.environment.pip_text",
    "bootstrap.environment.requirements",
    "bootstrap.environment.versions",
    "bootstrap.models.manifest_entry",
    "bootstrap.volume.categories",
    "bootstrap.volume.link_plan",
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


# --- the rooms of bootstrap/


def room(name: str) -> str:
    """The room of a module of bootstrap; empty for what lies in none."""
    first = name.removeprefix("bootstrap.").partition(".")[0]
    return first if name.startswith("bootstrap.") and first in ROOMS else ""


def arrows(name: str) -> set[str]:
    """The other rooms that a room imports."""
    used = {room(i) for n in modules() if room(n) == name for i in imports(n)}
    return used - {name, ""}


def test_every_module_of_bootstrap_has_a_room() -> None:
    here = {n for n in modules() if top(n) == "bootstrap"}
    assert {n for n in here if not room(n)} == TOP
    assert {room(n) for n in here} == {*ROOMS, ""}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_below_it(name: str) -> None:
    assert arrows(name) <= set(ROOMS[ROOMS.index(name) + 1 :])


def test_the_picture_on_the_architecture_page_shows_every_arrow_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    block = next(b for b in re.findall(r"```\n(.*?)```", text, re.DOTALL) if b.startswith("boot "))
    drawn = {}
    for line in block.splitlines():
        name, _, used = line.partition("─▶")
        drawn[name.strip()] = set(used.split())
    assert list(drawn) == ROOMS
    assert drawn == {name: arrows(name) for name in ROOMS}


@functools.cache
def faces() -> dict[str, set[str]]:
    """Package of bootstrap → what its `__all__` names, for rooms and the packages in them."""
    found = {}
    for name, tree in modules().items():
        if room(name) and any(other.startswith(f"{name}.") for other in modules()):
            lists = (n.value for n in tree.body if isinstance(n, ast.Assign) and is_all(n))
            found[name] = set(ast.literal_eval(next(lists, ast.List([]))))
    return found


def is_all(node: ast.Assign) -> bool:
    return [getattr(target, "id", "") for target in node.targets] == ["__all__"]


def steps(module: str, name: str) -> Iterator[tuple[str, str]]:
    """Package and what is taken from it, on the way to `from module import name`."""
    parts = module.split(".")
    for depth in range(2, len(parts)):
        yield ".".join(parts[:depth]), parts[depth]
    if module in faces():
        yield module, name


@functools.cache
def taken(tree: ast.Module) -> tuple[tuple[str, str], ...]:
    """Module and name of each import from a room, wherever in the tree."""
    return tuple(_taken(tree))


def _taken(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if room(a.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                if room(module) or (module == "bootstrap" and alias.name in ROOMS):
                    yield module, alias.name


USERS = ("bootstrap", "handler", "scripts", "demo")


@pytest.mark.parametrize("user", sorted(trees(*USERS)))
def test_a_room_is_used_through_its_face(user: str) -> None:
    """From outside, only what `__all__` of the room, and of a package within it, names."""
    past = {
        f"{package}: {name}"
        for module, wanted in taken(trees(*USERS)[user])
        if room(module) != room(user) or not room(module)
        for package, name in steps(module, wanted)
        if name not in faces()[package]
    }
    assert past == set()


@pytest.mark.parametrize("package", sorted(faces()))
def test_a_face_says_one_sentence_and_names_what_is_used_outside(package: str) -> None:
    assert ast.get_docstring(modules()[package])
    used = {
        name
        for user, tree in trees(*USERS).items()
        if not f"{user}.".startswith(f"{package}.")
        for module, wanted in taken(tree)
        for at, name in steps(module, wanted)
        if at == package
    }
    assert faces()[package] <= used
