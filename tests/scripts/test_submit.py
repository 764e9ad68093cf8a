"""scripts/submit.py and its parts: what it sends, what it survives, what it never does."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bootstrap.config import Settings
from bootstrap.core.terminal import Style, as_typed
from handler.common.errors import JobError, combined
from handler.request.parse import WorkflowRequest, parse_request
from scripts import submit
from scripts.api_key import is_safe_for_a_key
from scripts.diagnostics_text import diagnostics_text
from scripts.endpoint import TRIES, Endpoint, Job
from scripts.errors import CODES, EndpointError, UsageError
from scripts.outcome import Ended, report
from scripts.request_form import named_input, workflow_input
from scripts.saving import safe_name, save
from scripts.watching import Waiting, Watching, progress_in, queue_words
from tests.end_to_end.test_worker import from_file, plain
from tests.support.control_plane import ControlPlane
from tests.support.plane_http import Answer, LoopbackServer, Request
from tests.support.public_api import CLIENT_KEY, HANG_UP, PublicApi
from tests.support.sources import ROOT

ENV = {"RUNPOD_API_KEY": CLIENT_KEY, "RUNPOD_ENDPOINT_ID": "some-endpoint"}


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(body).encode(), headers=headers)


@dataclass
class Script:
    """A server that answers each call with the next of its list, and the last for ever."""

    answers: dict[str, list[Answer | None]]
    seen: list[Request] = field(default_factory=list)
    url: str = ""

    def serve(self, request: Request) -> Answer | None:
        self.seen.append(request)
        call = next((c for c in self.answers if f"/{c}" in request.path), None)
        if call is None:
            return Answer(404)
        left = self.answers[call]
        return left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def scripted(**answers: list[Answer | None]) -> Iterator[Script]:
    script = Script(answers)
    server = LoopbackServer(script.serve)
    script.url = f"{server.url}/v2"
    try:
        yield script
    finally:
        server.close()


def ended(output: Any, status: str = "COMPLETED", **more: Any) -> Answer:
    return answer({"id": "job-1", "status": status, "output": output, **more})


QUEUED = answer({"id": "job-1", "status": "IN_QUEUE"})


def call(script: Script, folder: Path, *arguments: str, **env: str) -> int:
    """submit.py with a small workflow; results go below `folder`."""
    workflow = folder / "workflow.json"
    workflow.write_text(json.dumps(plain()))
    given = [str(workflow), "--output", str(folder / "out"), *arguments]
    return submit.main(given, {**ENV, "RUNPOD_ENDPOINT_BASE_URL": script.url, **env})


def endpoint(url: str, waits: list[float], key: str | None = CLIENT_KEY) -> Endpoint:
    return Endpoint(url, key, lambda _: None, waits.append)


# --- what is sent -----------------------------------------------------------------------------


def written(folder: Path, content: Any) -> str:
    place = folder / "workflow.json"
    place.write_text(json.dumps(content))
    return str(place)


def test_set_keeps_the_type_of_what_it_replaces(tmp_path: Path) -> None:
    source = written(tmp_path, plain())
    given = workflow_input(source, ["1.width=64", "2.filename_prefix=64", "1.color=true"], [], None)
    assert given["overrides"] == {
        "1": {"width": 64, "color": True},
        "2": {"filename_prefix": "64"},
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("1.widht=64", "input 'widht' of node 1 (EmptyImage); it has width, height"),
        ("1.widht=64", "Did you mean 1.width?"),
        ("9.width=64", "names node 9; the workflow has 1 (EmptyImage)"),
    ],
)
def test_an_input_that_is_not_there_is_refused_before_it_is_paid_for(
    tmp_path: Path, wrong: str, said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        workflow_input(written(tmp_path, plain()), [wrong], [], None)


def png(path: Path, **texts: str) -> str:
    """A picture as SaveImage writes it, with texts beside it."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return str(path)


def test_a_picture_has_its_workflow_in_it(tmp_path: Path) -> None:
    prompt = json.dumps(plain())
    given = workflow_input(png(tmp_path / "a.png", prompt=prompt, workflow="{}"), [], [], None)
    assert given == {"workflow": plain()}
    for texts, said in (({"workflow": "{}"}, "only the page's form"), ({}, "no workflow in it")):
        with pytest.raises(UsageError, match=said):
            workflow_input(png(tmp_path / "b.png", **texts), [], [], None)
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(png(tmp_path / "c.png", prompt=prompt)).read_bytes()[:60])
    with pytest.raises(UsageError, match="Export"):
        workflow_input(str(cut), [], [], None)


def test_a_byte_order_mark_is_not_a_fault(tmp_path: Path) -> None:
    source = tmp_path / "windows.json"
    source.write_text(json.dumps(plain()), "utf-8-sig")
    assert workflow_input(str(source), [], [], None) == {"workflow": plain()}


def test_an_error_has_its_code_its_sentence_the_nodes_last_word_and_a_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = {
        "error": "Node 3 (KSampler) failed. Check it.",
        "error_code": "job.node_failed",
        "fix": "Check it.",
        "docs": "https://docs.example/job.node_failed",
        "details": {"traceback": ["  File x\n", "RuntimeError: sizes must match\n"]},
    }
    job = Job("job-1", "FAILED", output, "Node 3 (KSampler) failed. Check it.")
    assert report(Ended(job), Path("nowhere"), False) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error[job.node_failed]: Node 3 (KSampler) failed.",
        "  RuntimeError: sizes must match",
        "hint: Check it.",
        "more: https://docs.example/job.node_failed",
    ]


def test_of_several_problems_each_is_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [JobError("workflow.invalid", f"{name} is wrong.", f"Send {name}.") for name in "ab"]
    error = combined(found)
    output = {"error_code": error.code, "fix": error.fix, "details": dict(error.details)}
    assert report(Ended(Job("1", "FAILED", output, str(error))), Path("nowhere"), False) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error[workflow.invalid]: The workflow has 2 problems:",
        "  (1) a is wrong. Send a.",
        "  (2) b is wrong. Send b.",
        "hint: Correct all of them and send it again.",
    ]


def test_diagnostics_keep_to_the_width() -> None:
    stage = {"name": "a stage", "seconds": 2, "outcome": "failed", "note": "word " * 30}
    exits = [{"code": 1, "reason": {"message": "word " * 30}}]
    given = {
        "boot": {"outcome": "ready", "seconds": 2, "timeline": [stage]},
        "comfyui": {"exits": exits},
        "versions": {f"package{n}": "1.2.3" for n in range(9)},
    }
    lines = diagnostics_text(given, Style(80)).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 8


def test_every_code_of_the_client_is_listed_and_used() -> None:
    sources = [p for p in (ROOT / "scripts").glob("*.py") if p.name != "errors.py"]
    used = re.findall(r'"(client\.\w+)"', "".join(p.read_text("utf-8") for p in sources))
    assert {*used, UsageError("").code} == set(CODES)


HEALTH = {
    "jobs": {"completed": 9, "failed": 0, "inProgress": 2, "inQueue": 4, "retried": 0},
    "workers": {"idle": 0, "initializing": 1, "ready": 2, "running": 2, "throttled": 0},
}


@pytest.mark.parametrize(
    ("jobs", "workers", "words"),
    [
        (4, {"running": 2, "initializing": 1}, "at most 3 jobs ahead, 2 workers busy, 1 starting"),
        (2, {"initializing": 1, "running": 0}, "at most 1 job ahead, 1 worker starting"),
        (1, {"throttled": 3}, "next, 3 workers waiting for a free GPU"),
        (1, {}, "next, no worker yet"),
        (0, {"running": 1}, ""),
        ("4", {"running": 1}, ""),
        (None, None, ""),
    ],
)
def test_the_queue_is_described_by_what_is_known(jobs: Any, workers: Any, words: str) -> None:
    assert queue_words({"jobs": {"inQueue": jobs}, "workers": workers}) == words


@pytest.mark.parametrize("health", [None, [], "well", {"jobs": 4}, {"workers": {}}])
def test_nothing_is_said_of_a_queue_that_is_not_known(health: Any) -> None:
    assert queue_words(health) == ""


def test_the_queue_is_asked_about_seldom_and_never_stops_a_job() -> None:
    with scripted(health=[answer(HEALTH), Answer(500)]) as script:
        waiting = Waiting(endpoint(f"{script.url}/some", []).health)
        assert waiting.words("IN_QUEUE") == "", "not at once"
        waiting._next = 0.0
        seen = "at most 3 jobs ahead, 2 workers busy, 1 starting"
        assert waiting.words("IN_QUEUE") == waiting.words("IN_QUEUE") == seen
        assert len(script.seen) == 1
        waiting._next = 0.0
        assert waiting.words("IN_PROGRESS") == seen and len(script.seen) == 1
        assert waiting.words("IN_QUEUE") == "", "it does not answer: nothing is known any more"


def test_the_queue_is_shown_while_a_job_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.watching._QUEUE_AFTER_SECONDS", 0.0)
    taken = ended({"stage": "queued", "position": 2}, "IN_PROGRESS")
    states: list[Answer | None] = [QUEUED, taken, ended({"results": []})]
    with scripted(run=[QUEUED], status=states, health=[answer(HEALTH)]) as script:
        assert call(script, tmp_path) == 0
    shown = capsys.readouterr().err
    assert "in queue: at most 3 jobs ahead, 2 workers busy, 1 starting\n" in shown
    assert "queued · place 2\n" in shown


def test_a_value_may_hold_equals_signs_and_dots(tmp_path: Path) -> None:
    given = workflow_input(written(tmp_path, plain()), ["2.filename_prefix=a=b.c"], [], 5)
    assert given["overrides"] == {"2": {"filename_prefix": "a=b.c"}}
    assert given["max_wait"] == 5


def test_a_whole_request_keeps_its_fields(tmp_path: Path) -> None:
    request = {"workflow": plain(), "overrides": {"1": {"width": 8}}, "max_wait": 9}
    given = workflow_input(written(tmp_path, {"input": request}), ["1.height=4"], [], None)
    assert given == {**request, "overrides": {"1": {"width": 8, "height": 4}}}


def test_an_image_is_named_by_its_file_or_as_asked(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"bytes")
    source, cat = written(tmp_path, from_file("x")), str(tmp_path / "cat.png")
    given = workflow_input(source, [], [cat, f"photo.png={cat}"], None)
    assert [image["name"] for image in given["images"]] == ["cat.png", "photo.png"]
    assert base64.b64decode(given["images"][1]["image"]) == b"bytes"


@pytest.mark.parametrize(
    ("content", "assignments", "images", "said"),
    [
        ({"nodes": []}, [], [], "API format|Export"),
        ([], [], [], "not an object"),
        ({}, [], [], "no nodes"),
        (plain(), ["9.text=a"], [], r"node 9; the workflow has 1 \(EmptyImage\)"),
        (plain(), ["text=a"], [], "NODE.INPUT=VALUE"),
        (plain(), ["1.width"], [], "NODE.INPUT=VALUE"),
        (plain(), [], ["no/such/file.png"], "cannot be read"),
    ],
)
def test_what_cannot_be_sent_is_reported_before_it_is(
    tmp_path: Path, content: Any, assignments: list[str], images: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        workflow_input(written(tmp_path, content), assignments, images, None)


API = json.dumps(plain())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty.\nhint: In ComfyUI choose"),
        (b" \n", "is empty.\nhint: In ComfyUI choose"),
        (b"\xef\xbb\xbf", "is empty.\nhint: In ComfyUI choose"),
        (b"{", "line 1, column 2: Expecting property name"),
        (b'{"1": {"a": 1,}}', "line 1, column 14: there must be no comma before }"),
        (b'{"1": [1, 2,\n ]}', "line 1, column 12: there must be no comma before ]"),
        (b'{"1": 1,\n "2" 2}', "line 2, column 6: Expecting ':' delimiter"),
        (b'{"1": {} "2": {}}', "line 1, column 10: Expecting ',' delimiter"),
        (b"<html>", "line 1, column 1: Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xd8\xff\xe0 JFIF", "is a JPEG picture; only a PNG's workflow can be used"),
        (b"RIFF\x10\0\0\0WEBP", "is a WebP picture"),
        (b"\x10\0\0\0\0\0\0\0{}", "is not a text file"),
        (b"\x80abc", "is not a text file"),
        (b'{"nodes": [], "links": []}', "in the editor's own format"),
        (b'{"1": {"class_type": "A", "inputs": {"a": NaN}}}', "not finite"),
        (b'{"1": {"class_type": "A", "inputs": {"a": 1e999}}}', "not finite"),
    ],
)
def test_a_file_that_is_not_a_workflow_is_called_what_it_is(
    tmp_path: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.json").write_bytes(content)
    assert submit.main([str(tmp_path / "w.json")], ENV) == 2
    shown = capsys.readouterr().err
    first, *hint = shown.splitlines()
    assert said in shown and first.startswith("error[client.usage]: ")
    assert [line[:6] for line in hint] in ([], ["hint: "])
    assert ("comma" in shown) == (b",}" in content or b",\n ]" in content)


def test_a_file_that_is_not_there_is_named_with_the_one_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(API)
    with pytest.raises(UsageError, match=r"w\.jsn does not exist\. Did you mean \S+/w\.json\?"):
        workflow_input(str(tmp_path / "w.jsn"), [], [], None)
    for far in ("portrait.json", "my.json"):  # endings are alike, which says nothing
        with pytest.raises(UsageError, match=rf"{far} does not exist\.$"):
            workflow_input(str(tmp_path / far), [], [], None)
    with pytest.raises(UsageError, match=r"is a folder\. Name a file in it: w\.json\."):
        workflow_input(str(tmp_path), [], [], None)
    with pytest.raises(UsageError, match=r"cannot be read: Not a directory"):
        workflow_input(str(tmp_path / "w.json" / "w.json"), [], [], None)


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (
            {"prompt": plain(), "client_id": "x"},
            {"workflow": {"prompt": plain(), "client_id": "x"}},
        ),
        ({"output": plain(), "workflow": {}}, {"workflow": {"output": plain(), "workflow": {}}}),
        ({"input": {"prompt": plain()}}, {"prompt": plain()}),
        ({"workflow": plain(), "max_wait": 3}, {"workflow": plain(), "max_wait": 3}),
        ({"input": {"workflow": plain()}}, {"workflow": plain()}),
        ({"input": {"workflow": API}}, {"workflow": API}),
    ],
)
def test_every_form_that_a_worker_understands_is_sent(
    tmp_path: Path, content: Any, sent: dict[str, Any]
) -> None:
    given = workflow_input(written(tmp_path, content), [], [], None)
    assert given == sent
    request = parse_request(given, Settings())
    assert isinstance(request, WorkflowRequest) and set(request.workflow) == set(plain())


def test_an_input_is_set_whatever_is_around_the_workflow(tmp_path: Path) -> None:
    source = written(tmp_path, {"prompt": plain()})
    assert workflow_input(source, ["1.width=8"], [], None)["overrides"] == {"1": {"width": 8}}
    with pytest.raises(UsageError, match=r"Did you mean 1\.width"):
        workflow_input(source, ["1.widht=8"], [], None)


def test_text_that_powershell_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(API, "utf-16")
    assert workflow_input(str(tmp_path / "w.json"), [], [], None) == {"workflow": plain()}


def test_a_number_that_json_has_no_form_for_is_a_text(tmp_path: Path) -> None:
    given = workflow_input(written(tmp_path, plain()), ["1.width=NaN"], [], None)
    assert given["overrides"] == {"1": {"width": "NaN"}}


def test_a_workflow_on_the_volume_is_named_with_its_params() -> None:
    given = named_input("portrait", ["prompt=a = b", "steps=20", 'name="7"'], [], 5)
    assert given == {
        "workflow_name": "portrait",
        "params": {"prompt": "a = b", "steps": 20, "name": "7"},
        "max_wait": 5,
    }


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        ([], ENV, "Name a workflow file"),
        (["w.json", "--name", "x"], ENV, "Name a workflow file"),
        (["--name", "x", "--set", "1.a=2"], ENV, "--set goes with a workflow file"),
        (["--name", "x", "--param", "a"], ENV, "NAME=VALUE"),
        (["w.json", "--param", "a=2"], ENV, "--param goes with --name"),
        (["w.json", "--diagnostics"], ENV, "--diagnostics goes without"),
        (["w.json", "--html", "x.html"], ENV, "--html go with --diagnostics"),
        (["--diagnostics"], {"RUNPOD_ENDPOINT_ID": "e"}, "RUNPOD_API_KEY is not set"),
        (["--diagnostics"], {"RUNPOD_API_KEY": "k"}, "RUNPOD_ENDPOINT_ID is not set"),
        (["--diagnostics"], {**ENV, "RUNPOD_API_KEY": "rpa_A\nrpa_B"}, "white space"),
        (
            ["--diagnostics"],
            {**ENV, "RUNPOD_ENDPOINT_BASE_URL": "http://example.com"},
            "https only",
        ),
        (["--diagnostics", "--url", "localhost:8000"], {}, "http:// or https://"),
    ],
)
def test_wrong_use_ends_with_2_and_a_sentence(
    arguments: list[str],
    env: Mapping[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit.main(arguments, env) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "rpa_A" not in shown


def test_a_request_that_runpod_would_refuse_is_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.png").write_bytes(bytes(8_000_000))
    with scripted(run=[QUEUED]) as script:
        assert call(script, tmp_path, "--image", str(tmp_path / "large.png")) == 2
        assert script.seen == []
    said = capsys.readouterr().err
    assert (
        "10.7 MB; Runpod accepts at most 10 MB.\nhint: Put large files into ComfyUI/input/" in said
    )
    large = {"1": {"class_type": "A", "inputs": {"text": "x" * 11_000_000}}}
    (tmp_path / "large.json").write_text(json.dumps(large))
    assert submit.main([str(tmp_path / "large.json")], ENV) == 2
    assert "as workflows/large.json, and send --name large instead" in capsys.readouterr().err


# --- what it survives -------------------------------------------------------------------------


def test_busy_broken_and_cut_answers_are_asked_for_again(tmp_path: Path) -> None:
    with ControlPlane() as plane, PublicApi(plane) as api:
        api.answer_next("run", Answer(429), Answer(503), HANG_UP)
        waits: list[float] = []
        job = endpoint(api.url, waits).submit({"a": 1})
        assert plane.pending == [job.id]
        assert waits == [1, 2, 4]
        api.answer_next("status", Answer(500), HANG_UP)
        assert endpoint(api.url, waits).status(job.id).status == "IN_QUEUE"


def test_a_job_that_may_have_been_queued_twice_is_said_to_be(tmp_path: Path) -> None:
    reported: list[str] = []
    with ControlPlane() as plane, PublicApi(plane) as api:
        api.lose_answers_to_run = 1
        Endpoint(api.url, CLIENT_KEY, reported.append, lambda _: None).submit({"a": 1})
        assert len(plane.pending) == 2
    assert "the job runs twice" in reported[0]


def test_trying_again_has_an_end() -> None:
    waits: list[float] = []
    with scripted(run=[Answer(502)]) as script:
        with pytest.raises(EndpointError, match="status 502"):
            endpoint(f"{script.url}/e", waits).submit({})
        assert len(script.seen) == TRIES
    assert len(waits) == TRIES - 1
    assert sum(waits) <= 60


def test_the_server_says_when_to_come_again() -> None:
    waits: list[float] = []
    busy = [Answer(429, headers={"Retry-After": "7"}), Answer(429, headers={"Retry-After": "9999"})]
    with scripted(run=[*busy, QUEUED]) as script:
        endpoint(f"{script.url}/e", waits).submit({})
    assert waits == [7, 30]


def test_a_job_is_not_sent_again_to_a_local_worker_that_may_run_it() -> None:
    with scripted(runsync=[HANG_UP]) as script:
        with pytest.raises(EndpointError, match="cut"):
            endpoint(script.url, [], None).run_and_wait({}, 5)
        assert len(script.seen) == 1


def test_a_wrong_address_is_reported_at_once() -> None:
    waits: list[float] = []
    with scripted(runsync=[QUEUED]) as script:
        gone = script.url
    for prog in ("comfyui-worker submit", "submit.py"):
        serve = as_typed("serve --local", prog)
        local = Endpoint(gone, None, lambda _: None, waits.append, serve)
        with pytest.raises(EndpointError, match=f"nothing answers there.*`{re.escape(serve)}`"):
            local.run_and_wait({}, 5)
    with pytest.raises(EndpointError, match=r"nothing answers there\. Check the network"):
        endpoint(gone, waits).submit({})
    with pytest.raises(EndpointError, match=r"name cannot be resolved\. Check the network"):
        endpoint("http://no.such.invalid/v2/e", waits).submit({})
    assert waits == []


def test_a_job_that_runs_is_asked_for_until_the_network_is_back() -> None:
    waits: list[float] = []
    with scripted(run=[QUEUED]) as script:
        gone = script.url
    with pytest.raises(EndpointError, match="nothing answers there"):
        endpoint(gone, waits).status("job-1")
    assert len(waits) == TRIES - 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, r"status 429 \(too many requests\)\. It takes no more requests for now"),
        (
            500,
            r"status 500 \(internal server error\)\. Look at the endpoint's state",
        ),
    ],
)
def test_an_endpoint_that_stays_busy_or_broken_is_named_with_its_status(
    status: int, said: str
) -> None:
    with scripted(run=[Answer(status)]) as script, pytest.raises(EndpointError, match=said):
        endpoint(f"{script.url}/e", []).submit({})


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (Answer(401), "refuses the key"),
        (Answer(403), "refuses the key"),
        (Answer(404), "RUNPOD_ENDPOINT_ID"),
        (Answer(400, b'{"error": "bad input"}'), "bad input"),
        (Answer(200, b"<html>hello"), "not JSON: <html>hello"),
        (answer([1, 2]), "names no job"),
        (answer({"status": "IN_QUEUE"}), "names no job"),
    ],
)
def test_a_refusal_ends_with_3_and_says_what_to_do(
    tmp_path: Path, first: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[first]) as script:
        assert call(script, tmp_path) == 3
    assert said in capsys.readouterr().err


def test_a_connection_lost_while_watching_leaves_the_jobs_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[QUEUED], status=[Answer(404)]) as script:
        assert call(script, tmp_path, "--json") == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["id"] == "job-1"
    assert "job-1 may go on" in shown.err


def test_completed_without_output_is_not_a_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[QUEUED], status=[answer({"id": "job-1", "status": "COMPLETED"})]) as script:
        assert call(script, tmp_path) == 1
    assert "MAX_REPLY_MB" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "CANCELLED"])
def test_other_ends_are_failures(
    tmp_path: Path, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[QUEUED], status=[answer({"id": "job-1", "status": status})]) as script:
        assert call(script, tmp_path) == 1
    assert status in capsys.readouterr().err


def test_a_job_that_cannot_be_cancelled_is_said_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[QUEUED], status=[QUEUED], cancel=[Answer(403)]) as script:
        assert call(script, tmp_path, "--timeout", "0.1") == 4
    assert "could not be cancelled" in capsys.readouterr().err


# --- what it never does -----------------------------------------------------------------------


def test_the_key_goes_to_no_other_host_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password from-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with scripted(run=[QUEUED], status=[QUEUED]) as other:
        location = other.url.replace("127.0.0.1", "localhost") + "/e/run"
        for status in (301, 302, 303, 307, 308):
            with scripted(run=[Answer(status, headers={"Location": location})]) as script:
                assert call(script, tmp_path) == 3
                assert script.seen[0].headers["authorization"] == f"Bearer {CLIENT_KEY}"
        assert other.seen == []
    shown = capsys.readouterr()
    assert "redirects to localhost" in shown.err
    assert CLIENT_KEY not in shown.out + shown.err


def test_a_local_worker_gets_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with scripted(runsync=[ended({"results": []})]) as script:
        assert call(script, tmp_path, "--url", script.url) == 0
        assert "authorization" not in script.seen[0].headers


def test_a_key_that_comes_back_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    echo = f"who sends {CLIENT_KEY}?"
    for first in (Answer(400, echo.encode()), answer(echo)):
        with scripted(run=[first]) as script:
            assert call(script, tmp_path) == 3
    results = {"results": [{"kind": "text", "text": echo}], "warnings": [echo]}
    for last in (ended(results), ended({"x": echo}, "FAILED", error=echo)):
        for option in ([], ["--json"]):
            with scripted(run=[QUEUED], status=[last]) as script:
                assert call(script, tmp_path, *option) in (0, 1)
    shown = capsys.readouterr()
    assert "who sends ***?" in shown.out
    assert CLIENT_KEY not in shown.out + shown.err


def test_a_job_id_cannot_choose_the_path(tmp_path: Path) -> None:
    queued = answer({"id": "../../other/x?y=#", "status": "IN_QUEUE"})
    with scripted(run=[queued], status=[ended({"results": []})]) as script:
        assert call(script, tmp_path) == 0
        assert script.seen[1].path == "/v2/some-endpoint/status/../../other/x?y=#"  # unquoted


def test_what_a_terminal_would_act_on_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = "\x1b]0;title\x07\x1b[2Jhello\r\x9b1m"
    output = {"results": [{"kind": "text", "text": nasty}], "warnings": [nasty]}
    assert progress_in({"stage": nasty})[1] == "]0;title[2Jhello1m"
    with scripted(run=[QUEUED], status=[ended(output)]) as script:
        assert call(script, tmp_path) == 0
    shown = capsys.readouterr()
    assert "hello" in shown.out
    assert not {"\x1b", "\r", "\x07", "\x9b"} & set(shown.out + shown.err)
    finding = {"code": "a.b", "severity": "error", "message": nasty, "fix": nasty}
    assert "\x1b" not in diagnostics_text({"findings": [finding], "versions": {"a": nasty}})


@pytest.mark.parametrize(
    "name",
    ["../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\x\\evil.png", "a/../../evil.png"],
)
def test_a_result_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "out"
    save({"results": [{"filename": name, "image": "aGk="}]}, folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [folder / "evil.png"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("", "result"),
        ("..", "result"),
        (".bashrc", "bashrc"),
        ("a\x00\n\x1b[2Jb.png", "a_[2Jb.png"),
        ("\ud800.png", "_.png"),
        ("x" * 300 + ".png", "x" * 180 + ".png"),
        ("é" * 150 + ".webp", "é" * 90 + ".webp"),
        ("Größe 1.png", "Größe 1.png"),
    ],
)
def test_names_are_plain(given: str, name: str) -> None:
    assert safe_name(given) == name


def test_nothing_that_exists_is_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    (tmp_path / "target").write_text("also mine")
    (out / "a-2.png").symlink_to(tmp_path / "target")
    (out / "a-3.png").symlink_to(tmp_path / "not-there")
    output, saving = save({"results": [{"filename": "a.png", "image": "aGk="}]}, out)
    assert saving.saved == [out / "a-4.png"]
    assert output["results"] == [{"filename": "a.png", "saved": str(out / "a-4.png")}]
    assert (out / "a.png").read_text() == "mine"
    assert (tmp_path / "target").read_text() == "also mine"
    assert not (tmp_path / "not-there").exists()


# --- what comes back --------------------------------------------------------------------------


def test_every_kind_of_result(tmp_path: Path) -> None:
    with scripted(video=[Answer(200, b"a video", "video/mp4")]) as bucket:
        url = f"{bucket.url}/video.mp4?signature=secret"
        output = {
            "results": [
                {"filename": "a.png", "kind": "image", "image": "aGk="},
                {"filename": "b.flac", "kind": "audio", "data": "aGk="},
                {"kind": "text", "text": "a caption", "node_id": "3"},
                {"filename": "long.txt", "kind": "text", "data": "aGk="},
                {"filename": "c.mp4", "kind": "video", "url": url},
                {"filename": "d.mp4", "kind": "video", "path": "ComfyUI/output/d.mp4"},
            ]
        }
        shown, saving = save(output, tmp_path)
        assert "authorization" not in bucket.seen[0].headers
    assert [path.name for path in saving.saved] == ["a.png", "b.flac", "long.txt", "c.mp4"]
    assert (tmp_path / "c.mp4").read_bytes() == b"a video"
    assert saving.texts == ["a caption"]
    assert saving.elsewhere == [("d.mp4", "ComfyUI/output/d.mp4")]
    assert saving.problems == []
    assert "secret" not in json.dumps(shown)


@pytest.mark.parametrize("warnings", [[], ["a.mp4 is only on the volume, at out/a.mp4."]])
def test_what_is_on_the_volume_alone_is_said_once(
    tmp_path: Path, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = [{"filename": "a.mp4", "kind": "video", "path": "out/a.mp4"}]
    job = Job("j", "COMPLETED", {"results": results, "warnings": warnings})
    assert report(Ended(job), tmp_path, False, None, 2.0) == 0
    said = capsys.readouterr().err
    assert said.count("out/a.mp4") == 1
    assert said.endswith("Done in 2.0 s, 1 file on the volume.\n")


def test_worker_comfyuis_replies_are_saved_too(tmp_path: Path) -> None:
    with scripted(b=[Answer(200, b"from the bucket")]) as bucket:
        images = [
            {"filename": "a.png", "type": "base64", "data": "aGk="},
            {"filename": "b.png", "type": "s3_url", "data": f"{bucket.url}/b.png"},
        ]
        _, saving = save({"images": images, "texts": ["a caption"]}, tmp_path)
    assert (tmp_path / "a.png").read_bytes() == b"hi"
    assert saving.texts == ["a caption"]
    assert (tmp_path / "b.png").read_bytes() == b"from the bucket"
    assert saving.problems == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("text", "unknown form"),
        ({"filename": "a.png", "image": "not base64!"}, "not base64"),
        ({"filename": "a.png"}, "without content"),
        ({"filename": "a.png", "url": "http://192.0.2.1/a.png?signature=secret"}, "is not https"),
        ({"filename": "a.png", "url": "file:///etc/passwd"}, "is not https"),
        ({"filename": "a.png", "url": "http://127.0.0.1:1/a?signature=secret"}, "bucket failed"),
    ],
)
def test_a_result_that_cannot_be_saved_is_reported(tmp_path: Path, entry: Any, said: str) -> None:
    _, saving = save({"results": [entry, {"filename": "b.png", "image": "aGk="}]}, tmp_path)
    assert [path.name for path in saving.saved] == ["b.png"]
    assert len(saving.problems) == 1
    assert said in saving.problems[0]
    assert "secret" not in saving.problems[0]


def test_a_download_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    cut = Answer(200, b"half", headers={"Content-Encoding": "gzip"})  # and it is not
    with scripted(a=[cut]) as bucket:
        entry = {"filename": "a.png", "url": f"{bucket.url}/a.png"}
        _, saving = save({"results": [entry]}, tmp_path)
    assert len(saving.problems) == 1
    assert list(tmp_path.iterdir()) == []


def test_not_saved_is_an_exit_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(
        run=[QUEUED], status=[ended({"results": [{"filename": "a", "image": "?"}]})]
    ) as s:
        assert call(s, tmp_path) == 5
    assert "could not be saved" in capsys.readouterr().err


def test_nothing_is_sent_when_its_results_could_not_be_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with scripted(run=[QUEUED]) as script:
        assert call(script, tmp_path) == 2
        assert script.seen == []
    assert "out cannot be used: File exists.\nhint: Name another" in capsys.readouterr().err


@pytest.mark.parametrize("end", [Answer(401), ended({"results": []}), ended({}, "FAILED")])
def test_no_empty_folder_is_left(tmp_path: Path, end: Answer) -> None:
    with scripted(run=[end]) as script:
        call(script, tmp_path, "--output", str(tmp_path / "new/pictures"))
        assert len(script.seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["workflow.json"]


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with scripted(run=[ended({"results": []})]) as script:
        assert call(script, tmp_path) == 0
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("option", ["--max-wait", "--timeout"])
@pytest.mark.parametrize("wrong", ["-1", "0", "nan", "inf", "1e300", "soon", ""])
def test_a_time_that_no_job_can_have_is_refused_before_anything_is_sent(
    tmp_path: Path, option: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(run=[QUEUED]) as script:
        with pytest.raises(SystemExit) as left:
            call(script, tmp_path, option, wrong)
        assert left.value.code == 2 and script.seen == []
    assert f"'{wrong}' is not a number of seconds above 0, at most" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_does_not_hide_the_diagnostics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output: Any = {"diagnostics": {"findings": [], "boot": {"outcome": "ready"}, "comfyui": None}}
    page = tmp_path / "nowhere" / "page.html"
    assert report(Ended(Job("1", "COMPLETED", output)), tmp_path, False, page) == 5
    shown = capsys.readouterr()
    assert f"{page} could not be written: No such file" in shown.err
    assert "Boot: ready" in shown.out


def test_an_address_with_a_path_is_reported_what_is_too_much(tmp_path: Path) -> None:
    with scripted() as script:
        local = Endpoint(f"{script.url}/runsync", None, lambda _: None)
        with pytest.raises(EndpointError, match="--url without a path"):
            local.run_and_wait({}, 5)


def test_diagnostics_with_errors_end_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"code": "volume.full", "severity": "error", "message": "It is full.", "fix": "Room!"}
    output: Any = {"diagnostics": {"findings": [finding, "… 5 more"], "boot": {}, "comfyui": None}}
    job = Job("job-1", "COMPLETED", output)
    assert report(Ended(job), Path("nowhere"), False) == 1
    shown = capsys.readouterr().out
    assert "x It is full. [volume.full]\n    Room!\n" in shown


@pytest.mark.parametrize(
    ("output", "percent", "words"),
    [
        (None, None, ""),
        (["what", "ever"], None, ""),
        ("loading", None, "loading"),
        (41, None, ""),
        ({}, None, ""),
        ({"percent": 40, "stage": "sampling"}, 40, "sampling"),
        ({"percent": 400}, 100, ""),
        ({"percent": "40"}, None, ""),
        ({"percent": float("nan")}, None, ""),
        ({"node": "3", "node_type": "KSampler", "step": 5, "steps": 20}, 25, None),
        ({"node": {"id": "3", "class_type": "KSampler"}, "value": 5, "max": 20}, 25, None),
        ({"node": 3}, None, "node 3"),
        ({"step": 1, "steps": 0}, None, ""),
    ],
)
def test_any_progress_is_borne(output: Any, percent: float | None, words: str | None) -> None:
    expected = "KSampler (3) · step 5 of 20" if words is None else words
    assert progress_in(output) == (percent, expected)


def test_progress_is_shown_line_by_line_off_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = {"node": "3", "node_type": "KSampler", "step": 1, "steps": 4}
    reported = [{"stage": "loading model.safetensors"}, sampling, {**sampling, "step": 2}]
    states = [ended(output, "IN_PROGRESS") for output in reported]
    with scripted(run=[QUEUED], status=[*states, ended({"results": []})]) as script:
        assert call(script, tmp_path) == 0
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Done in \d+\.\d s, no files\.", lines.pop())
    assert lines == [
        "job job-1",
        "waiting for a worker",
        "loading model.safetensors",
        "KSampler (3) · step 1 of 4 (25 %)",
    ]


def test_where_a_key_may_go() -> None:
    safe = (
        "https://api.runpod.ai/v2",
        "http://127.0.0.1:8000",
        "http://localhost",
        "http://[::1]/",
    )
    unsafe = ("http://api.runpod.ai/v2", "http://127.0.0.1.evil.com", "ftp://localhost", "x", "")
    assert all(map(is_safe_for_a_key, safe))
    assert not any(map(is_safe_for_a_key, unsafe))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, step: int) -> str:
    """The last line on a terminal so wide, a sampler being at `step`."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    reported = {"stage": "running", "percent": 50.0, "node": "4", "class_type": "KSamplerAdvanced"}
    with Watching() as watching:
        watching.show("IN_PROGRESS", {**reported, "step": step, "steps": 20})
        return terminal.getvalue().rpartition("\r")[2].rstrip()


@pytest.mark.parametrize("step", [9, 10])
def test_the_bar_gives_way_to_the_words(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    words = f"running · KSamplerAdvanced (4) · step {step} of 20"
    for columns, filled in ((120, 12), (80, 8), (70, 0), (40, 0)):
        line = shown(monkeypatch, columns, step)
        assert len(line) <= columns - 2
        if columns > 40:
            assert words in line
        assert abs(line.count("#") - filled) <= 1  # tqdm draws for a file without encoding so
