"""Jobs with inputs and outputs of all kinds on a real ComfyUI, with real servers on either side."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment, furnished, ready_worker
from tests.end_to_end.test_worker import assert_refused, from_file, plain, png
from tests.support.s3_server import BUCKET, KEY_ID, SECRET, S3Server, s3_server
from tests.support.schemas import check_reply
from tests.support.vicious_server import ViciousServer

QUERY = "?X-Signature=query-marker-5150"


@pytest.fixture(scope="module")
def volume(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnished(demo, tmp_path_factory.mktemp("in-and-out") / "volume")


@pytest.fixture(scope="module")
def worker(
    demo: DemoVolume, volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedWorker]:
    """One that may fetch from, and upload to, this machine."""
    env = environment(demo, volume, tmp_path_factory.mktemp("work"))
    with ready_worker({**env, "ALLOW_PRIVATE_URLS": "true"}) as booted:
        yield booted


@pytest.fixture(scope="module")
def web() -> Iterator[ViciousServer]:
    with ViciousServer() as running:
        yield running


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


def ask(worker: BootedWorker, **given: Any) -> dict[str, Any]:
    """A successful job, with its reply checked against the schema."""
    reply = worker.ask(given)
    assert reply["status"] == "completed", reply
    check_reply(reply)
    return reply


def colour(result: dict[str, Any]) -> Any:
    picture = Image.open(io.BytesIO(base64.b64decode(result["image"])))
    return picture.convert("RGB").getpixel((2, 2))


def no_input_is_left(worker: BootedWorker) -> bool:
    work = worker.serving.work
    assert work is not None
    return not any(path.is_file() for path in work.input.rglob("*"))


def report(files: str, ui: Any) -> dict[str, Any]:
    node = {"class_type": "TestReport", "inputs": {"files": files, "ui": json.dumps(ui)}}
    return {"1": node}


# --- in ---------------------------------------------------------------------------------------


def test_a_url_in_a_loader_is_fetched_and_its_query_is_seen_nowhere(
    worker: BootedWorker, web: ViciousServer, capfd: pytest.CaptureFixture[str]
) -> None:
    url = web.serve("/photo.png", png(colour=(10, 200, 30))) + QUERY
    reply = ask(worker, workflow=from_file(url))
    assert colour(reply["results"][0]) == (10, 200, 30)
    assert no_input_is_left(worker)
    bad = worker.ask({"workflow": from_file(web.serve("/gone.png", b"", status=404) + QUERY)})
    assert_refused(bad, "input.not_fetched", "/gone.png", "404")
    out, err = capfd.readouterr()
    assert "query-marker" not in repr(reply) + repr(bad) + out + err


@pytest.mark.parametrize("value", ["clipspace/mask.png", "clipspace/mask.png [input]"])
def test_a_file_in_a_subfolder_is_loaded_as_the_editor_names_it(
    worker: BootedWorker, value: str
) -> None:
    data = base64.b64encode(png(colour=(1, 2, 3))).decode()
    file = {"name": "mask.png", "subfolder": "clipspace", "data": data}
    reply = ask(worker, workflow=from_file(value), files=[file])
    assert colour(reply["results"][0]) == (1, 2, 3) and no_input_is_left(worker)


def test_a_repeated_name_never_shows_yesterdays_picture(
    worker: BootedWorker, web: ViciousServer
) -> None:
    for shade in ((1, 1, 1), (250, 1, 1), (1, 250, 1)):
        url = web.serve("/same.png", png(colour=shade))
        by_name = [{"name": "a.png", "url": url}]
        assert (
            colour(ask(worker, workflow=from_file("a.png"), files=by_name)["results"][0]) == shade
        )
        assert colour(ask(worker, workflow=from_file(url))["results"][0]) == shade


def test_all_that_is_missing_is_reported_at_once(worker: BootedWorker, volume: Path) -> None:
    (volume / "ComfyUI" / "input").mkdir(exist_ok=True)
    (volume / "ComfyUI" / "input" / "portrait.png").write_bytes(png())
    nodes = from_file("portrai.png")
    nodes["7"] = {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "red"}}
    nodes["8"] = {"class_type": "SaveImagee", "inputs": {"images": ["1", 0]}}
    nodes["9"] = {"class_type": "Nothing", "inputs": {}}
    reply = worker.ask({"workflow": nodes})
    assert_refused(
        reply, "workflow.unknown_node", "SaveImagee", "Nothing", "portrai.png", "mask.png"
    )
    check_reply(reply)
    codes = [problem["error_code"] for problem in reply["details"]["problems"]]
    assert codes == ["workflow.unknown_node", "input.missing", "input.missing"]
    assert reply["details"]["problems"][1]["nearest"] == ["portrait.png"]


def test_object_info_is_asked_for_once(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handler.execution.comfy_client import ComfyClient

    asked: list[str] = []
    real = ComfyClient.node_classes

    async def counted(self: ComfyClient) -> list[str]:
        asked.append("object_info")
        return await real(self)

    monkeypatch.setattr(ComfyClient, "node_classes", counted)
    (jobs,) = worker.worker._instances
    jobs._known._names.clear()
    ask(worker, workflow=plain())
    assert asked == [], "not needed for a job that is right"
    for name in ("SaveImagee", "SaveImageee"):
        nodes = plain()
        nodes["2"]["class_type"] = name
        reply = worker.ask({"workflow": nodes})
        assert reply["details"]["nearest"][name], "it knows what there is"
    assert asked == ["object_info"]


def test_a_workflow_on_the_volume_is_run_by_its_name(worker: BootedWorker, volume: Path) -> None:
    folder = volume / "workflows" / "people"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "portrait.json").write_text(json.dumps(plain(color=0)))
    (volume / "workflows" / "ui.json").write_text('{"nodes": [], "links": []}')
    (volume / "secret.json").write_text(json.dumps(plain()))
    for name in ("people/portrait", "people/portrait.json"):
        overrides = {"1": {"color": 0x0000FF}}
        reply = ask(worker, workflow_name=name, overrides=overrides)
        assert colour(reply["results"][0]) == (0, 0, 255)
    reply = worker.ask({"workflow_name": "people/portrai"})
    assert_refused(reply, "workflow.name_unknown", "people/portrait")
    assert_refused(worker.ask({"workflow_name": "ui"}), "workflow.ui_format", "Export (API)")
    for name in ("../secret", "/etc/passwd", str(volume / "secret"), "a\0b", "x" * 5000, "\ud800"):
        assert_refused(worker.ask({"workflow_name": name}), "workflow.name_unknown")


def test_files_come_from_a_bucket_in_a_zip_and_go_to_an_address_as_one(
    worker: BootedWorker, bucket: S3Server
) -> None:
    frames = io.BytesIO()
    with zipfile.ZipFile(frames, "w") as made:
        made.writestr("1.png", png(colour=(255, 0, 0)))
        made.writestr("deep/2.png", png(colour=(0, 0, 255)))
    bucket.client.put_object(Bucket=BUCKET, Key="in/frames.zip", Body=frames.getvalue())
    where = {"Bucket": BUCKET, "Key": "out.zip"}
    nodes = from_file("frames/1.png")
    second = from_file("frames/deep/2.png")
    nodes |= {"3": second["1"], "4": {**second["2"], "inputs": {"images": ["3", 0]}}}
    nodes["4"]["inputs"]["filename_prefix"] = "second"
    reply = ask(
        worker,
        workflow=nodes,
        files=[{"url": f"s3://{BUCKET}/in/frames.zip", "unpack": True}],
        s3Config={
            "accessId": KEY_ID,
            "accessSecret": SECRET,
            "bucketName": BUCKET,
            "endpointUrl": bucket.url,
        },
        output={
            "zip": True,
            "upload_urls": [bucket.client.generate_presigned_url("put_object", where)],
        },
    )
    (made_entry,) = reply["results"]
    assert made_entry["url"].endswith("/out.zip") and len(made_entry["files"]) == 2
    content = bucket.client.get_object(**where)["Body"].read()
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        pictures = [Image.open(io.BytesIO(opened.read(name))) for name in opened.namelist()]
    colours = {picture.convert("RGB").getpixel((0, 0)) for picture in pictures}
    assert colours == {(255, 0, 0), (0, 0, 255)}
    assert no_input_is_left(worker)


DECLARED = """
params:
  color: {type: integer, sets: 1.color, minimum: 0, maximum: 16777215, required: true}
  size: {type: integer, sets: [1.width, 1.height], minimum: 16, maximum: 64, default: 32}
"""


def test_a_workflow_with_declared_params_is_a_typed_endpoint(
    worker: BootedWorker, volume: Path
) -> None:
    folder = volume / "workflows"
    folder.mkdir(exist_ok=True)
    (folder / "typed.json").write_text(json.dumps(plain()))
    (folder / "typed.params.yaml").write_text(DECLARED)
    reply = ask(worker, workflow_name="typed", params={"color": 0x00FF00})
    assert colour(reply["results"][0]) == (0, 255, 0)
    picture = Image.open(io.BytesIO(base64.b64decode(reply["results"][0]["image"])))
    assert picture.size == (32, 32)
    wrong = worker.ask({"workflow_name": "typed", "params": {"colour": 1, "size": 65}})
    assert_refused(wrong, "params.unknown", "did you mean color", "at most 64", "is missing")
    listed = worker.ask({"type": "workflows", "openapi": True})
    check_reply(listed)
    (entry,) = [entry for entry in listed["workflows"] if entry["name"] == "typed"]
    assert entry["params"]["required"] == ["color"] and "/runsync" in listed["openapi"]["paths"]


def test_a_folder_of_the_volume_is_loaded(worker: BootedWorker, volume: Path) -> None:
    folder = volume / "ComfyUI/input/seq"
    folder.mkdir(parents=True)
    for n in (1, 2):
        (folder / f"{n}.png").write_bytes(png())
    load = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": "seq"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "f"}}
    assert len(ask(worker, workflow={"1": load, "2": save})["results"]) == 2


@pytest.mark.parametrize("name", ["noext", "sub\\a.png", "照片.PNG", "old.png [output]"])
def test_a_file_of_the_volume_is_loaded_whatever_its_name(
    worker: BootedWorker, volume: Path, name: str
) -> None:
    folder = volume / "ComfyUI" / ("output" if name.endswith("]") else "input")
    place = folder / name.removesuffix(" [output]").replace("\\", "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(png(colour=(7, 8, 9)))
    assert colour(ask(worker, workflow=from_file(name))["results"][0]) == (7, 8, 9)


@pytest.mark.parametrize("suffix", ["", " [output]", " [temp]", " [input]"])
def test_a_loader_of_uploads_leads_nowhere_else(
    worker: BootedWorker, volume: Path, tmp_path: Path, suffix: str
) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (volume / "secret.png").write_bytes(png())
    said = set()
    for path in (tmp_path / "secret.png", tmp_path / "not-there.png"):
        climbing = os.path.relpath(path, worker.serving.work.input)
        for name in (f"{path}{suffix}", f"{climbing}{suffix}"):
            reply = worker.ask({"workflow": from_file(name)})
            assert_refused(reply, "input.outside")
            said.add(
                reply["error"].partition(" names ")[0] + reply["error"].partition(" which ")[2]
            )
    assert len(said) == 1, "nothing tells whether there is such a file"


# --- out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "mime"), [("webp", "image/webp"), ("jpeg", "image/jpeg"), ("png", "image/png")]
)
def test_pictures_come_in_the_format_that_is_wanted(
    worker: BootedWorker, volume: Path, format: str, mime: str
) -> None:
    (result,) = ask(worker, workflow=plain(), output={"format": format, "metadata": False})[
        "results"
    ]
    picture = base64.b64decode(result["image"])
    assert result["mime_type"] == mime and b"EmptyImage" not in picture
    assert (volume / result["path"]).read_bytes() == picture


def test_the_workflow_travels_in_the_picture_unless_it_shall_not(worker: BootedWorker) -> None:
    (result,) = ask(worker, workflow=plain())["results"]
    assert b"EmptyImage" in base64.b64decode(result["image"])


def test_previews_come_when_they_are_asked_for(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    assert [r["type"] for r in ask(worker, workflow=nodes)["results"]] == ["output"]
    both = ask(worker, workflow=nodes, output={"include_temp": True})["results"]
    assert sorted(r["type"] for r in both) == ["output", "temp"]


def test_pictures_meant_for_the_socket_come_back_too(worker: BootedWorker) -> None:
    nodes = plain(color=0x00FF00)
    nodes["2"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    assert colour(ask(worker, workflow=nodes)["results"][0]) == (0, 255, 0)


def test_a_latent_comes_back(worker: BootedWorker) -> None:
    size = {"width": 64, "height": 64, "batch_size": 1}
    nodes = {
        "1": {"class_type": "EmptyLatentImage", "inputs": size},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "l"}},
    }
    (result,) = ask(worker, workflow=nodes)["results"]
    assert result["kind"] == "file" and result["filename"].endswith(".latent") and result["data"]


@pytest.mark.parametrize(
    ("files", "ui", "kinds"),
    [
        ("v/a.mp4", {"gifs": [{"filename": "a.mp4", "subfolder": "v", "type": "output",
                               "format": "video/h264-mp4", "fullpath": "OUTPUT/v/a.mp4"}]},
         ["video"]),
        ("v/b.mp4", {"gifs": [{"filename": "b.mp4", "subfolder": "odd", "type": "odd",
                               "fullpath": "OUTPUT/v/b.mp4"}]}, ["video"]),
        ("3d/m.glb", {"result": ["3d/m.glb", {"position": [1]}, None]}, ["model"]),
        ("3d/n.glb", {"model_file": "OUTPUT/3d/n.glb"}, ["model"]),
        ("s.flac", {"audio": [{"filename": "s.flac", "subfolder": "", "type": "output"}]},
         ["audio"]),
        ("x.custom", {"odd": [{"deep": [[{"filename": "x.custom"}]]}]}, ["file"]),
        ("y.bin", {"text": "one text", "string": ["two", "two"]}, ["text"] * 3),
    ],
)  # fmt: skip
def test_whatever_shape_a_node_reports_comes_back(
    worker: BootedWorker, files: str, ui: Any, kinds: list[str]
) -> None:
    reply = ask(worker, workflow=report(files, ui))
    assert [r["kind"] for r in reply["results"]] == kinds
    if kinds != ["text"] * 3:
        content = base64.b64decode(reply["results"][0]["data"])
        assert content == f"content of {files}".encode()
    else:
        assert reply["also_kept"] and reply["also_kept"][0].endswith(".bin")


@pytest.mark.parametrize("place", ["beside the code", "working directory", "{volume}"])
def test_what_a_node_saves_past_the_output_folder_comes_back(
    worker: BootedWorker, volume: Path, place: str
) -> None:
    name = f"{len(place)}.png"
    inputs = {"place": place.format(volume=volume / "ComfyUI/output"), "name": name}
    for _ in range(2):
        nodes = {"1": {"class_type": "TestWriteAside", "inputs": inputs}}
        (result,) = ask(worker, workflow=nodes)["results"]
        assert result["image"] and (volume / result["path"]).is_file()
        assert result["path"].startswith("ComfyUI/output/aside/")


def test_texts_that_name_files_come_back_as_files(worker: BootedWorker) -> None:
    ui = {"audio": ["u.wav"], "mesh": [{"path": "OUTPUT/u.glb"}], "video": ["output/u.mp4", "mp4"]}
    results = ask(worker, workflow=report("u.wav u.glb u.mp4", ui))["results"]
    assert [r["kind"] for r in results] == ["audio", "model", "video"]


def test_two_nodes_that_save_the_same_have_a_result_each(
    worker: BootedWorker, volume: Path
) -> None:
    nodes = plain(color=0x123456)
    nodes["3"] = nodes["2"]
    first, second = ask(worker, workflow=nodes)["results"]
    assert {first["node_id"], second["node_id"]} == {"2", "3"}
    assert first["image"] == second["image"] and first["path"] == second["path"]


@pytest.mark.parametrize(
    "path", ["/proc/self/environ", "/etc/passwd", "../user/x.json", "OUTPUT/../.lock"]
)
def test_a_node_cannot_have_other_files_sent(worker: BootedWorker, path: str) -> None:
    ui = {
        "text": ["x"],
        "gifs": [{"filename": path, "fullpath": path}],
        "result": [path + ".json", path],
        "files": [{"filename": os.path.basename(path), "subfolder": os.path.dirname(path)}],
    }
    reply = ask(worker, workflow=report("", ui))
    assert [r["kind"] for r in reply["results"]] == ["text"]


def test_a_job_takes_its_own_bucket_along_and_its_secret_is_seen_nowhere(
    worker: BootedWorker, bucket: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {
        "accessId": KEY_ID,
        "accessSecret": SECRET,
        "bucketName": BUCKET,
        "endpointUrl": bucket.url,
    }
    job = {"id": "j", "input": {"workflow": plain(batch_size=3)}, "s3Config": config}
    reply = asyncio.run(worker.worker.handle(job))
    check_reply(reply)
    assert len(reply["results"]) == 3
    for result in reply["results"]:
        answer = requests.get(result["url"], timeout=30)
        assert answer.headers["Content-Type"] == "image/png"
        assert len(answer.content) == result["size"] and "image" not in result
    wrong = {**config, "bucketName": "not-there"}
    failed = asyncio.run(worker.worker.handle({**job, "s3Config": wrong}))
    assert all(result["image"] for result in failed["results"])
    assert any("NoSuchBucket" in warning for warning in failed["warnings"])
    history = requests.get(worker.serving.comfyui.url + "/history", timeout=30).text
    out, err = capfd.readouterr()
    assert SECRET not in repr(reply) + repr(failed) + out + err + history


def test_a_repeated_job_whose_file_is_gone_runs_its_last_node_again(worker: BootedWorker) -> None:
    work = worker.serving.work
    assert work is not None
    first = ask(worker, workflow=plain(color=99))["results"][0]
    assert os.listdir(work.output), "left for a repetition"
    for file in work.output.glob("*.png"):
        file.unlink()
    again = ask(worker, workflow=plain(color=99))["results"][0]
    assert colour(first) == colour(again) and first["path"] != again["path"]


def test_the_output_folder_does_not_grow(worker: BootedWorker) -> None:
    work = worker.serving.work
    assert work is not None
    for shade in range(5):
        ask(worker, workflow=plain(color=shade, batch_size=3))
        assert len([p for p in work.output.rglob("*") if p.is_file()]) <= 6
    ask(worker, workflow=report("", {"text": ["x"]}))
    assert [p for p in work.output.rglob("*") if p.is_file()] == []


def test_what_is_too_large_is_on_the_volume_and_the_reply_says_so(
    worker: BootedWorker, volume: Path
) -> None:
    (jobs,) = worker.worker._instances
    settings = jobs._delivery._settings
    object.__setattr__(settings, "max_reply_mb", 0.02)
    try:
        nodes = plain(width=512, height=512)
        nodes["3"] = report("", {"text": ["x" * 30_000]})["1"]
        reply = ask(worker, workflow=nodes)
    finally:
        object.__setattr__(settings, "max_reply_mb", 10.0)
    (long,) = [r for r in reply["results"] if r["kind"] == "text"]
    assert (volume / long["path"]).read_text() == "x" * 30_000
    assert len(json.dumps(reply)) <= 20_000
    assert any("MAX_REPLY_MB=0.02" in warning for warning in reply["warnings"])
