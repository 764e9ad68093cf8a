"""Wrong arguments of `python -m handler` are refused before ComfyUI is started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handler.sdk import local_api_fault
from tests.support.sources import ROOT

MODULE = "/worker/handler/__main__.py"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--rp_serve_api", "--rp_api_port", "{taken}"), 2, "error[worker.cannot_listen]: The"),
        (("--rp_serve_api", "--rp_api_port", "many"), 2, "invalid int value: 'many'"),
        (("--test_input", "{{'input': 3}}"), 2, "--test_input is not valid JSON: "),
        (("--help",), 0, ""),
    ],
)
def test_they_cost_no_start(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    with socket.create_server(("localhost", 0)) as server:
        given = [argument.format(taken=server.getsockname()[1]) for argument in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "handler", *given],
            cwd=ROOT,
            env={**os.environ, "VOLUME_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == code and said in done.stderr
    assert "Traceback" not in done.stderr and "[worker]" not in done.stderr  # no stage of a boot


@pytest.mark.parametrize(
    ("host", "program", "command"),
    [
        ("127.0.0.1", MODULE, "python -m handler --rp_serve_api --rp_api_port"),
        (
            "0.0.0.0",
            MODULE,
            "python -m handler --rp_serve_api --rp_api_host 0.0.0.0 --rp_api_port",
        ),
        ("::1", "comfyui-worker serve", "comfyui-worker serve --local --host ::1 --port"),
    ],
)
def test_another_port_that_is_free_is_named(host: str, program: str, command: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        fault = local_api_fault(host, port, program)
        assert local_api_fault("::1" if host != "::1" else "127.0.0.1", port, program) is None
    assert fault is not None and "(Address already in use)" in fault.message
    named = re.fullmatch(rf"Choose another one: `{re.escape(command)} (\d+)`", fault.fix)
    assert named and local_api_fault(host, int(named[1]), program) is None


@pytest.mark.parametrize(
    ("host", "port", "options"),
    [("no-such.invalid", 8001, "--port 8001"), ("192.0.2.1", 8001, "--port 8001")],
)
def test_a_host_that_is_not_this_machine_is_replaced(host: str, port: int, options: str) -> None:
    fault = local_api_fault(host, port, "comfyui-worker serve")
    assert fault is not None and fault.fix.endswith(f"comfyui-worker serve --local {options}`")


def test_a_port_past_the_last_one_is_no_other_port() -> None:
    """The resolver takes it modulo 65536."""
    fault = local_api_fault("127.0.0.1", 65536 + 8000, "comfyui-worker serve")
    assert fault is not None and "from 1 to 65535" in fault.message


def test_a_name_is_listened_on_at_each_address_that_exists(
    monkeypatch: pytest.MonkeyPatch, answers: Callable[..., None]
) -> None:
    answers("192.0.2.1", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert local_api_fault("localhost", port, MODULE) is not None
    assert local_api_fault("localhost", port, MODULE) is None


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the resolver answers."""

    def set_to(*addresses: str) -> None:
        def resolved(host: str, port: int, **_: int) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, 0, 0, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", resolved)

    return set_to
