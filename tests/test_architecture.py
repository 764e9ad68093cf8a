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

# The rooms of each package. Arrows go down a list, never up: a room may import those behind it.
ROOMS = {
    "bootstrap": "boot doctor nodes environment models comfyui volume net config core".split(),
    "handler": "jobs outputs execution models inputs request sdk common".split(),
}
ALL_ROOMS = [f"{package}.{name}" for package, names in ROOMS.items() for name in names]
# What lies in no room: the packages, their commands, and what the image's HEALTHCHECK runs.
TOP = {
    "bootstrap",
    "bootstrap.__main__",
    "bootstrap.healthcheck",
    "handler",
    "handler.__main__",
}

PURE = (
    "bootstrap.comfyui.exits",
    "bootstrap.config.bucket",
    "bootstrap.config.fields",
    "bootstrap.core.findings",
    "bootstrap.core.redact",
    "bootstrap.environment.imports",
    "bootstrap.models.manifest_entry",
    "bootstrap.volume.categories",
    "bootstrap.volume.link_plan",
    "handler.common.errors",
    "handler.common.media_types",
    "handler.common.reply",
    "handler.execution.history",
    "handler.execution.node_progress",
    "handler.execution.refusal",
    "handler.outputs.produced",
    "handler.request.compatibility",
    "handler.request.fields",
    "handler.request.params",
    "handler.request.parse",
    "handler.request.references",
    "handler.request.workflow",
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
OWN_THREADS = {
    "handler.common.blocking",
    "handler.sdk.shutdown",
    "handler.execution.restarts",
    "handler.outputs.volume_store",
}


@pytest.mark.parametrize("name", sorted(n for n in modules() if top(n) == "handler"))
def test_jobs_block_only_in_the_pools_of_leaves(name: str) -> None:
    """No executor, no thread and no `to_thread` of a module's own: each was a way to hang."""
    used = {n.attr for n in ast.walk(modules()[name]) if isinstance(n, ast.Attribute)}
    used |= {n.id for n in ast.walk(modules()[name]) if isinstance(n, ast.Name)}
    assert not used & {"ThreadPoolExecutor", "to_thread", "run_in_executor"}
    assert name in OWN_THREADS or not used & {"Thread", "Timer"}


@pytest.mark.parametrize("name", sorted(n for n in modules() if top(n) == "handler"))
def test_only_one_room_knows_the_sdk(name: str) -> None:
    """What it has of its own accord changes with each version, so it is used in one place."""
    knows = "runpod" in set(map(top, imports(name)))
    assert not knows or name.startswith("handler.sdk")


# Whoever talks to another host goes through the one door, where addresses are checked.
DOOR = {"bootstrap.net.addresses", "bootstrap.net.http"}
ON_THIS_MACHINE = {
    "bootstrap.boot.health",
    "bootstrap.comfyui.process",
    "bootstrap.comfyui.readiness",
    "bootstrap.core.temp_files",
    "bootstrap.healthcheck",
    "handler.execution.comfy_client",
    "handler.sdk",
    "handler.sdk.shutdown",
}
SENDS_THROUGH_IT = {"handler.outputs.uploads"}
NETWORK = {"aiohttp", "http", "httpx", "requests", "socket", "ssl", "urllib.request", "urllib3"}


def test_only_one_door_leads_to_other_hosts() -> None:
    talk = {n for n in modules() if NETWORK & {*imports(n), *map(top, imports(n))}}
    assert talk == DOOR | ON_THIS_MACHINE | SENDS_THROUGH_IT


def test_what_the_doctor_uses_needs_nothing_but_the_standard_library() -> None:
    roots = {n for n in modules() if n.startswith("bootstrap.doctor.report.")}
    roots |= {
        "bootstrap.core.findings",
        "bootstrap.config.settings",
        "bootstrap.volume.locate",
        "bootstrap.volume.links",
    }
    foreign = {
        name: outside
        for name in all_needed_by(roots)
        if (outside := {i for i in imports(name) if top(i) not in {"bootstrap", *STANDARD}})
    }
    assert foreign == {}


STANDARD = sys.stdlib_module_names
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "PyYAML"}


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
    required = {line.partition("==")[0] for line in lines if "==" in line}
    assert imported == required - {"uv"}  # a program


def test_the_guard_is_a_script_that_knows_nothing_of_the_project() -> None:
    assert {top(i) for i in imports("bootstrap.core.child_guard")} <= set(STANDARD)


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
    others = [name for name in modules() if name != "handler.sdk.job_loop"]  # the SDK's own loop
    done = subprocess.run(
        [sys.executable, "-c", script, *others],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_loads_little_before_comfyui_starts() -> None:
    """What takes jobs, and the SDK, are imported while ComfyUI starts."""
    script = "import sys, handler.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    later = "PIL aiohttp asyncio bootstrap.doctor boto3 filetype http.client runpod".split()
    assert not set(later) & set(loaded)
    assert [name for name in loaded if top(name) == "handler" and name.count(".") > 1] == []


# --- the rooms


def room(name: str) -> str:
    """The room of a module, such as `bootstrap.volume`; empty for what lies in none."""
    here = ".".join(name.split(".")[:2])
    return here if here in ALL_ROOMS else ""


def arrows(name: str) -> set[str]:
    """The other rooms of its package that a room imports."""
    used = {room(i) for n in modules() if room(n) == name for i in imports(n)}
    return {other for other in used if top(other) == top(name)} - {name}


def test_every_module_has_a_room() -> None:
    assert {n for n in modules() if not room(n)} == TOP
    assert {room(n) for n in modules()} == {*ALL_ROOMS, ""}


@pytest.mark.parametrize(("package", "most"), [("bootstrap", 130), ("handler", 50)])
def test_files_are_few_and_short(package: str, most: int) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) <= most, "merge what changes together"
    longest = max(files, key=lambda file: len(file.read_text().splitlines()))
    assert len(longest.read_text().splitlines()) <= 400, longest


@pytest.mark.parametrize("name", ALL_ROOMS)
def test_a_room_imports_only_rooms_below_it(name: str) -> None:
    order = [other for other in ALL_ROOMS if top(other) == top(name)]
    assert arrows(name) <= set(order[order.index(name) + 1 :])


@pytest.mark.parametrize("package", ROOMS)
def test_the_picture_on_the_architecture_page_shows_every_arrow_and_no_other(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    first = ROOMS[package][0]
    block = next(
        b for b in re.findall(r"```\n(.*?)```", text, re.DOTALL) if b.startswith(f"{first} ")
    )
    drawn = {}
    for line in block.splitlines():
        name, _, used = line.partition("─▶")
        drawn[name.strip()] = {f"{package}.{other}" for other in used.split()}
    assert list(drawn) == ROOMS[package]
    assert drawn == {name: arrows(f"{package}.{name}") for name in ROOMS[package]}


@functools.cache
def faces() -> dict[str, set[str]]:
    """Package → what its `__all__` names, for rooms and the packages in them."""
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
                if room(module) or room(f"{module}.{alias.name}"):
                    yield module, alias.name


USERS = ("bootstrap", "handler", "scripts", "demo")


@pytest.mark.parametrize("user", sorted(trees(*USERS)))
def test_a_room_is_used_through_its_face(user: str) -> None:
    """From outside, only what `__all__` of the room, and of a package within it, names."""
    assert past_faces(user, trees(*USERS)[user]) == set()


def past_faces(user: str, tree: ast.Module) -> set[str]:
    """What the module `user` imports from other rooms that their faces do not name."""
    return {
        f"{package}: {name}"
        for module, wanted in taken(tree)
        if room(module) != room(user) or not room(module)
        for package, name in steps(module, wanted)
        if name not in faces()[package]
    }


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
