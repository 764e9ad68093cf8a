"""Text that a terminal or locale cannot represent, from programs run as people run them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootstrap.core import log
from bootstrap.core.log import show
from handler.common.blocking import Pool
from tests.support.model_folders import link, safetensors, write

ROOT = Path(__file__).resolve().parents[3]
LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Names in Chinese, and one that is not UTF-8."""
    root = tmp_path / "卷"
    write(root / "ComfyUI/main.py", b"")
    safetensors(root / "models/loras/水墨.safetensors")
    write(root / "models/loras/空.safetensors", b"")
    write(root / "models/loras" / os.fsdecode(b"bad\xff.safetensors"), b"")
    link(root / "ComfyUI/models/checkpoints/断.safetensors", "/workspace/模型/断.safetensors")
    entry = '{"name": "墨.safetensors", "url": "https://127.0.0.1:1/墨", "directory": "loras"}'
    write(root / "models.json", f'{{"version": 1, "models": [{entry}]}}'.encode())
    return root


def run(locale: dict[str, str], *command: str, **env: str) -> str:
    """The output of our program, which must not fail."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**plain, **locale, **env},
        capture_output=True,
        check=False,
        timeout=300,
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Traceback" not in said, said
    assert "doctor.check_crashed" not in said and "doctor.part_failed" not in said, said
    return said


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_names_in_chinese_are_checked_and_planned_in_every_locale(
    locale: dict[str, str], volume: Path
) -> None:
    said = run(locale, "scripts/check_volume.py", str(volume), "--fix")
    assert "models.empty" in said or "models.link_other_mount" in said, said
    env = {"VOLUME_PATH": str(volume), "ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
    planned = run(locale, "-m", "bootstrap", "models", "list", **env)
    assert "墨.safetensors" in planned or "\\u58a8.safetensors" in planned
    run(locale, "-m", "bootstrap", "models", "plan", **env)


def handle(record: logging.LogRecord) -> None:
    """By our handler alone: pytest's own takes neither half characters nor wrong arguments."""
    for handler in logging.getLogger().handlers:
        if type(handler).__module__ == log.__name__:
            handler.handle(record)


def test_what_an_encoding_lacks_is_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    show("水 \udcff", ascii_only)
    ascii_only.seek(0)
    assert ascii_only.read() == "\\u6c34 \\udcff"
    handle(logging.LogRecord("bootstrap", logging.INFO, "", 0, "half \ud83d a character", (), None))
    assert "half \\ud83d a character" in capsys.readouterr().err


_LONG = """
import logging
from bootstrap.core import log
log.set_up("info", None, {as_json})
for name in ("bootstrap.boot", "comfyui"):
    logging.getLogger(name).info("a line of more than forty columns: `rm -- a b`")
"""


@pytest.mark.parametrize(
    ("as_json", "on_terminal", "said"),
    [
        (
            False,
            True,
            ["[worker] a line of more than forty", "  columns: `rm -- a b`", "[comfyui] a"],
        ),
        (False, False, ["[worker] a line of more than forty columns: `rm", "[comfyui] a"]),
        (True, True, ['{"requestId": null, "message": "a line of', '{"requestId"']),
    ],
)
def test_long_lines_are_wrapped_on_a_terminal_only(
    as_json: bool, on_terminal: bool, said: list[str]
) -> None:
    ours, theirs = os.openpty() if on_terminal else os.pipe()
    subprocess.run(
        [sys.executable, "-c", _LONG.format(as_json=as_json)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "40"},
        stderr=theirs,
        check=True,
    )
    written = os.read(ours, 4096).decode().splitlines()
    os.close(ours)
    os.close(theirs)
    assert [line[: len(start)] for line, start in zip(written, said, strict=True)] == said


SECRET = "hf_" + "x" * 34


@pytest.fixture
def err(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The lines logged since it was last called."""
    yield lambda: list(capfd.readouterr().err.splitlines())
    log.set_up()


def test_levels_and_origins_are_seen(err: Callable[[], list[str]]) -> None:
    logging.getLogger("bootstrap.boot").debug("too much")
    logging.getLogger("bootstrap.boot").info("%d stages", 3)
    logging.getLogger("handler.jobs").warning("slow")
    logging.getLogger("comfyui").info("100 % done")
    logging.getLogger("urllib3.pool").info("too much")
    logging.getLogger("urllib3.pool").error("gone")
    assert err() == [
        "[worker] 3 stages",
        "[worker] WARN: slow",
        "[comfyui] 100 % done",
        "[urllib3] ERROR: gone",
    ]
    log.set_up("debug")
    logging.getLogger("bootstrap.boot").debug("as asked")
    log.set_up("error")
    logging.getLogger("bootstrap.boot").warning("too much")
    assert err() == ["[worker] as asked"]


def test_no_record_gets_out_unmasked_whoever_wrote_it(err: Callable[[], list[str]]) -> None:
    """In a message, its arguments, a traceback; a library's too."""
    for as_json in (False, True):
        log.set_up(as_json=as_json)
        for name in ("handler.jobs", "comfyui", "urllib3.pool"):
            logger = logging.getLogger(name)
            logger.warning(f"plain {SECRET}")  # noqa: G004
            logger.warning("argument %s", SECRET)
            try:
                raise ValueError(f"raised with {SECRET}")
            except ValueError:
                logger.exception("caught")
        said = "\n".join(err())
        assert said.count("hf_***") == 9 and "x" * 10 not in said
        assert "Traceback" in said


def test_what_a_library_formats_wrongly_is_still_said(err: Callable[[], list[str]]) -> None:
    handle(logging.LogRecord("urllib3", logging.ERROR, "", 0, "%s %s", ("one",), None))
    assert err() == ["[urllib3] ERROR: %s %s"]


class Unprintable:
    def __str__(self) -> str:
        raise AttributeError("half made")


def test_a_line_that_cannot_be_formatted_never_raises(err: Callable[[], list[str]]) -> None:
    for said, arguments in (("%(a)s", ({"b": 1},)), ("%s", (Unprintable(),)), (Unprintable(), ())):
        handle(logging.LogRecord("handler", logging.INFO, "", 0, said, arguments, None))
    assert err() == ["[worker] %(a)s", "[worker] %s", "[worker] <a Unprintable without text>"]


def test_libraries_and_uncaught_errors_have_no_way_past_the_mask() -> None:
    """huggingface_hub and uvicorn have their own handlers; Python prints tracebacks unmasked."""
    program = f"""
import logging, threading
from huggingface_hub import get_hf_file_metadata
from bootstrap.core import log
log.set_up(as_json=True)
import runpod, uvicorn
uvicorn.Config("none:app")
logging.getLogger("huggingface_hub.utils._http").warning("HEAD {SECRET}")
logging.getLogger("uvicorn.access").info("GET {SECRET}")
def fail():
    raise ValueError("{SECRET}")
thread = threading.Thread(target=fail, name="a-thread")
thread.start()
thread.join()
fail()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [line["message"] for line in lines]
    assert said[:2] == ["[huggingface_hub] HEAD hf_***", "[uvicorn] GET hf_***"]
    assert said[2].startswith("the thread a-thread ended with an error:\nTraceback")
    assert said[3].startswith("stopped by an error that was not handled:\nTraceback")
    assert all(text.endswith("ValueError: hf_***") for text in said[2:]) and len(lines) == 4
    assert [line["level"] for line in lines] == ["WARN", "INFO", "ERROR", "ERROR"]


def test_warnings_and_errors_that_nothing_catches_are_masked() -> None:
    """Python itself writes both to standard error: `warnings.warn`, an error in `__del__`."""
    program = f"""
import gc, warnings
from bootstrap.core import log
log.set_up(as_json=True)
warnings.warn("GET https://someone:{SECRET}@host/")
class Closing:
    def __del__(self):
        raise ValueError("{SECRET}")
    def __repr__(self):
        return "<closing {SECRET}>"
Closing()
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and SECRET not in done.stdout + done.stderr
    warned, ignored = (json.loads(line) for line in done.stderr.splitlines())
    assert warned["level"] == "WARN" and "UserWarning: GET https://***@host/" in warned["message"]
    assert not warned["message"].endswith("\n")
    assert ignored["level"] == "ERROR" and ignored["message"].endswith("ValueError: hf_***")


def test_a_library_that_was_imported_later_is_masked_too() -> None:
    program = f"""
import logging
from bootstrap.core import log
log.set_up()
from huggingface_hub import get_hf_file_metadata
logging.getLogger("huggingface_hub").warning("HEAD {SECRET}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == "[huggingface_hub] WARN: HEAD hf_***\n"


def test_a_jobs_lines_bear_its_id_in_its_tasks_and_threads(err: Callable[[], list[str]]) -> None:
    logger, pool = logging.getLogger("handler.jobs"), Pool("test", 2, 1)

    async def job(name: str) -> None:
        with log.of_job(name):
            await pool.run(lambda: logger.info("in a thread"), 10)
            await asyncio.create_task(asyncio.sleep(0))
            logger.info("in a task")
        logger.info("after it")

    async def both() -> None:
        await asyncio.gather(job("a"), job("b"))

    asyncio.run(both())
    lines = err()
    for name in "ab":
        assert f"[worker] job {name}: in a thread" in lines
        assert f"[worker] job {name}: in a task" in lines
    assert lines.count("[worker] after it") == 2


def test_where_runpod_collects_it_lines_are_as_its_sdk_writes_them(
    err: Callable[[], list[str]], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runpod.serverless.modules.rp_logger import RunPodLogger

    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "endpoint")
    sdk = RunPodLogger()
    sdk.info("a line", "job")
    sdk.warn("a line")
    theirs = capfd.readouterr().out.splitlines()
    log.set_up(as_json=True)
    with log.of_job("job"):
        logging.getLogger("handler").info("a line")
    logging.getLogger("handler").warning("a line")
    assert err() == theirs
    logging.getLogger("comfyui").critical("two\nlines")
    logging.getLogger("handler").info("x" * 5000)
    last, long = map(json.loads, err())
    assert last == {"requestId": None, "message": "[comfyui] two\nlines", "level": "ERROR"}
    assert len(long["message"]) < 4200 and "904 characters cut" in long["message"]


def test_a_stream_that_is_gone_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    logging.getLogger("handler").error("unheard")


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_the_containers_command_serves_a_volume_of_chinese_names_in_every_locale(
    locale: dict[str, str], volume: Path, tmp_path: Path
) -> None:
    """It goes on in Python's UTF-8 mode, its arguments with it."""
    asked = '{"input": {"type": "models", "warum": "墨"}}'
    said = run(
        locale,
        *("-m", "handler", "--test_input", asked),
        VOLUME_PATH=str(volume),
        WORK_DIR=str(tmp_path / "工作"),
        LINK_OTHER_MOUNT="false",
        PACKAGES="report",
    )
    assert "水墨.safetensors" in said or "\\u6c34\\u58a8.safetensors" in said, said
