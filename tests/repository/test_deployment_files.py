"""Files that only other machines run: compose, workflows, what may enter the image. Docker and
GitHub are not at hand in a test, so these hold what can be held: form, pins, rights and names."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import bootstrap
from bootstrap.config import Settings, variables
from tests.support.plane_http import Answer, LoopbackServer, Request

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMPOSE: Any = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def fits(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    """check-jsonschema's word on a file, by the schema that it brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


FILES = [("compose-spec", ROOT / "docker-compose.yml")] + [
    ("github-workflows", w) for w in WORKFLOWS
]


@pytest.mark.parametrize(("schema", "path"), FILES, ids=lambda given: getattr(given, "name", given))
def test_a_file_fits_its_schema(schema: str, path: Path, tmp_path: Path) -> None:
    assert fits(schema, path).returncode == 0, fits(schema, path).stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(path.read_text().replace("ports:", "prots:").replace("runs-on:", "run-on:"))
    assert fits(schema, broken).returncode == 1


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_a_service_is_what_compose_takes_and_the_image_has(name: str) -> None:
    service = COMPOSE["services"][name]
    command = re.search(r"^CMD \[(.*)\]", DOCKERFILE, re.MULTILINE)
    assert command is not None
    own = re.findall(r'"([^"]+)"', command[1])
    assert service["command"] == [*own, "--rp_serve_api", "--rp_api_host", "0.0.0.0"]
    for argument in service["build"].get("args", {}):
        assert re.search(rf"^ARG {argument}\b", DOCKERFILE, re.MULTILINE), argument


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_a_service_sets_what_the_worker_understands(name: str) -> None:
    environment = COMPOSE["services"][name]["environment"]
    assert set(environment) <= {variable.name for variable in variables().values()}
    given = {key: value for key, value in environment.items() if value is not None}
    settings, findings = Settings.from_env(given)
    assert findings == ()
    assert settings.gpu == {"gpu": "required", "cpu": "none"}[name]
    assert ("--cpu" in settings.comfyui_args) == (name == "cpu")
    secret = {v.name for v in variables().values() if v.kind.secret}
    assert not secret & set(given), "a secret has no value here"


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_no_one_else_reaches_the_local_api(name: str) -> None:
    ports = COMPOSE["services"][name]["ports"]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_copy_of_the_example_is_all_that_compose_needs() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    text = (ROOT / "docker-compose.yml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text)) | {
        name
        for service in COMPOSE["services"].values()
        for name, value in service["environment"].items()
        if value is None
    }
    assert set(given) == asked
    assert "profiles" not in COMPOSE["services"]["cpu"], "what `docker compose up` starts"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "/output/"} <= set(ignored)


def test_a_gpu_is_asked_for() -> None:
    resources = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]
    assert resources["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_actions_are_pinned_by_commit_and_rights_are_few(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for line in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert "pull_request_target" not in text
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}
            assert "${{" not in step.get("run", ""), "what others write would become a command"


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def steps_of(job: Any, key: str) -> list[Any]:
    return [step[key] for step in job["steps"] if key in step]


def test_ci_runs_what_a_clone_is_judged_by() -> None:
    for name in ("ci", "release"):
        assert ".ci/run" in steps_of(workflow(name)["jobs"]["test"], "run")
    for script in (".ci/run", ".ci/smoke"):
        assert (ROOT / script).stat().st_mode & 0o111
    assert "make site" in (ROOT / ".ci" / "run").read_text()


def test_the_image_is_built_and_run_whenever_what_it_holds_changes() -> None:
    image = workflow("image")
    paths = image[True]["push"]["paths"]  # `on` is YAML's true
    copied = {path.removesuffix("/**") for path in paths}
    let_in = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {*let_in, "Dockerfile", "docker-bake.hcl", ".dockerignore", ".ci/smoke"} <= copied
    assert image[True]["pull_request"]["paths"] == paths
    runs = steps_of(image["jobs"]["cpu"], "run")
    assert runs == [".ci/smoke comfyui-volume-worker:local-cpu"]


def test_a_release_is_tested_built_run_and_scanned_before_latest_moves() -> None:
    jobs = workflow("release")["jobs"]
    image = jobs["image"]
    assert (image["needs"], jobs["latest"]["needs"]) == ("test", "image")
    assert image["permissions"] == {"contents": "read", "packages": "write"}
    uses = [step.get("uses", "").partition("@")[0] or step["name"] for step in image["steps"]]
    order = ("docker/bake-action", "It answers the Hub's jobs", "anchore/scan-action")
    assert [use for use in uses if use in order] == list(order)
    build = image["steps"][uses.index("docker/bake-action")]["with"]
    assert build["push"] and build["sbom"] and build["provenance"] == "mode=max"
    moves = [text for job in jobs.values() for text in steps_of(job, "run") if "latest" in text]
    assert moves == steps_of(jobs["latest"], "run")


FAKE_DOCKER = """#!/bin/sh
case "$1 $3" in
  "run --name") echo "$@" >> "$LOG" ;;
  "inspect {{.State.Health.Status}}") echo healthy ;;
  "inspect {{.State.Running}}") echo true ;;
  "port 8000/tcp") echo "$WORKER" ;;
esac
"""


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_the_smoke_run_ends_well_only_when_every_job_is_completed(
    tmp_path: Path, status: str
) -> None:
    """Docker is a script, the worker a server that answers each job the same."""
    docker = tmp_path / "docker"
    docker.write_text(FAKE_DOCKER)
    docker.chmod(0o755)
    asked: list[Any] = []

    def answer(request: Request) -> Answer:
        asked.append(json.loads(request.body))
        body = {"status": status.upper(), "output": {"status": status}}
        return Answer(200, json.dumps(body).encode())

    server = LoopbackServer(answer)
    try:
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "LOG": str(tmp_path / "log"),
            "WORKER": server.url.partition("//")[2],
        }
        done = subprocess.run([ROOT / ".ci" / "smoke", "IMAGE"], env=env, check=False)
    finally:
        server.close()
    jobs = json.loads((ROOT / ".runpod" / "tests.json").read_text())["tests"]
    assert (done.returncode == 0) == (status == "completed")
    assert asked == [{"input": job["input"]} for job in jobs][: len(asked)]
    assert len(asked) == (len(jobs) if status == "completed" else 1)
    assert " IMAGE " in (tmp_path / "log").read_text()


BAKE = (ROOT / "docker-bake.hcl").read_text()


def test_bake_reads_its_own_file_alone() -> None:
    """It would read docker-compose.yml too, which needs VOLUME and has a `cpu` of its own."""
    for name, job in (("image", "cpu"), ("release", "image")):
        steps = workflow(name)["jobs"][job]["steps"]
        (bake,) = (step for step in steps if "docker/bake-action" in step.get("uses", ""))
        assert bake["with"]["files"] == "docker-bake.hcl"
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "docker-bake.hcl"]:
        for command in re.findall(r"docker buildx bake[^`\n]*", document.read_text()):
            assert " -f docker-bake.hcl" in command, document


def test_every_variant_is_made_by_arguments_that_the_dockerfile_has() -> None:
    names = set(re.findall(r"^    ([A-Z_]+) += ", BAKE, re.MULTILINE))
    names |= set(re.findall(r"\{ ([A-Z_]+) += ", BAKE))
    assert {"TORCH", "COMFYUI_VERSION", "BASE_IMAGE"} <= names
    for name in names:
        assert re.search(rf"^ARG {name}\b", DOCKERFILE, re.MULTILINE), name
    targets = set(re.findall(r'^target "([\w-]+)"', BAKE, re.MULTILINE))
    named = set(re.findall(r'"([\w-]+)"', " ".join(re.findall(r"(?:targets|inherits) .*", BAKE))))
    assert named <= targets
    for suffix in ("", "-comfyui"):
        wanted = {f"{entry['target']}{suffix}" for entry in release_matrix()}
        assert wanted <= targets
    for entry in release_matrix():
        assert f'"${{IMAGE}}:${{TAG}}{entry["suffix"]}"' in BAKE


def release_matrix() -> Any:
    return workflow("release")["jobs"]["image"]["strategy"]["matrix"]["include"]


def release_step(prefix: str) -> str:
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    steps = [step for job in release["jobs"].values() for step in job["steps"]]
    return next(str(s["run"]) for s in steps if s.get("name", "").startswith(prefix))


@pytest.mark.parametrize(("tag", "code"), [(f"v{bootstrap.__version__}", 0), ("v99.0.0", 1)])
def test_a_tag_must_be_the_version_in_the_code(tag: str, code: int) -> None:
    env = {"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", release_step("The tag")], cwd=ROOT, env=env, check=False)
    assert done.returncode == code


def test_the_images_name_is_one_that_registries_take(tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = {
        "GITHUB_REF_NAME": "v1.2.3",
        "GITHUB_REPOSITORY": "Someone/ComfyUI-Worker",
        "GITHUB_ENV": str(out),
        "GITHUB_SHA": "abc",
        "GITHUB_SERVER_URL": "https://github.com",
        "PATH": "/usr/bin:/bin",
    }
    subprocess.run(["bash", "-ec", release_step("Names")], env=env, check=True)
    reported = dict(line.split("=", 1) for line in out.read_text().splitlines())
    assert (reported["IMAGE"], reported["TAG"], reported["SOURCE"]) == (
        "ghcr.io/someone/comfyui-worker",
        "1.2.3",
        "https://github.com/Someone/ComfyUI-Worker",
    )


def pinned(*names: str) -> set[tuple[str, str]]:
    """(name, version) of every line of these requirement files. AssertionError at one without."""
    found = set()
    for name in names:
        for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines():
            given = line.partition(";")[0].strip().removesuffix("\\").strip()
            if given and not given.startswith(("#", "-")):
                package, _, version = given.partition("==")
                assert version, f"{name}: {line}"
                found.add((plain_name(package.partition("[")[0]), version))
    return found


def plain_name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_python_packages_are_pinned_those_they_pull_in_too() -> None:
    assert pinned("comfyui.txt", "comfyui-constraints.txt", "comfyui-source.txt", "image.txt")
    there = {
        (plain_name(found.metadata["Name"]), found.version)
        for found in importlib.metadata.distributions()
    }
    loose = there - pinned("worker.txt", "dev.txt", "constraints.txt")
    assert {name for name, _ in loose} <= {"pip", "setuptools"}, "Python's own"


def test_the_build_has_the_workers_uv() -> None:
    worker = (ROOT / "requirements" / "worker.txt").read_text("utf-8")
    assert re.search(r'^ARG UV="(uv==\S+)"$', DOCKERFILE, re.MULTILINE)[1] in worker.split()  # type: ignore[index]


def test_nothing_enters_the_image_but_what_is_copied() -> None:
    """`.dockerignore` shuts everything out; what it lets in again is what COPY names."""
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for sources in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE)
        for source in sources.split()
    }
    assert let_in == copied
    shut_out = [line for line in lines[1:] if not line.startswith("!")]
    assert lines[-len(shut_out) :] == shut_out, "the last rule that fits wins"
    assert {"**/.env*", "**/__pycache__"} <= set(shut_out)


def test_the_changelog_knows_the_version_or_what_comes() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(bootstrap.__version__)
