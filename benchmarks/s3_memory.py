"""Memory while a large video is delivered to a bucket, compared with the usual way.

    python -m benchmarks.s3_memory [--megabytes 500]

A file of random bytes is delivered to a local S3 server (moto, in its own process) from a process
that has loaded the SDK and boto3 and made one small upload, as a worker would have. Prints the peak
of resident memory above that baseline, for our delivery (to the bucket, and kept on the volume as
well) and for the usual way, which reads the whole file and hands it to boto3.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.s3_server import S3Server, s3_server

WANTED_MB = 64
_BLOCK = 4 * 1024 * 1024
# Runs in its own process: the peak is the process's.
_DELIVERY = """
import asyncio, os, sys, time
from pathlib import Path
import runpod  # a worker has it
from bootstrap.config.bucket import bucket_of
from bootstrap.config import Settings
from bootstrap.volume import Layout
from bootstrap.comfyui import make_workdir
from handler.common.blocking import Calls
from handler.common.errors import Deadline
from handler.outputs import Delivery
from handler.outputs import DeliveryOptions
from handler.outputs.produced import ProducedFile

way, film, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
settings, _ = Settings.from_env(os.environ)
work = make_workdir(folder / "work")
(folder / "volume" / "ComfyUI").mkdir(parents=True, exist_ok=True)
calls = Calls.on(folder / "volume")
delivery = Delivery(settings, work, Layout(folder / "volume", True, None), calls)

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

def ours(name):
    options = DeliveryOptions(name, Deadline(600), bucket=bucket_of(settings))
    items, job = [ProducedFile("1", name, "", "output")], delivery.begin(options)
    delivery.files.claim(job.claim, time.time(), delivery.files.found(items))
    answer = asyncio.run(delivery.deliver(items, job))
    (result,) = answer["results"]
    assert "url" in result and "path" in result and "warnings" not in answer, answer

def usual(name):
    import boto3
    client = boto3.client(
        "s3", endpoint_url=os.environ["BUCKET_ENDPOINT_URL"],
        aws_access_key_id=os.environ["BUCKET_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["BUCKET_SECRET_ACCESS_KEY"], region_name="us-east-1")
    body = (work.output / name).read_bytes()
    client.put_object(Bucket=os.environ["BUCKET_NAME"], Key=name, Body=body)

deliver = {"ours": ours, "usual": usual}[way]
(work.output / "small.mp4").write_bytes(b"x" * 1000)
deliver("small.mp4")
os.rename(film, work.output / "film.mp4")
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak is counted from here
before, start = resident("VmRSS"), time.monotonic()
deliver("film.mp4")
print(before, resident("VmHWM"), time.monotonic() - start)
os.rename(work.output / "film.mp4", film)
work.remove()
"""


def make_film(path: Path, size: int) -> None:
    """Write random bytes: nothing on the way can compress them."""
    with open(path, "wb") as file:
        file.writelines(os.urandom(min(_BLOCK, size - first)) for first in range(0, size, _BLOCK))


def measure(way: str, film: Path, server: S3Server) -> tuple[float, float, float]:
    """(baseline, peak above it) in MB, and seconds."""
    folder = film.parent / way
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _DELIVERY, way, str(film), str(folder)],
        env={**os.environ, **server.env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    before, peak, seconds = (float(word) for word in done.stdout.split()[-3:])
    return before / 1e6, (peak - before) / 1e6, seconds


def main(argv: Sequence[str]) -> int:
    """Print the figures; 0 if ours stays within the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--folder", default=None, help="where files go (default: temp folder)")
    arguments = parser.parse_args(argv)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, s3_server() as server:
        film = Path(folder) / "film.mp4"
        make_film(film, arguments.megabytes * 1_000_000)
        print(f"{arguments.megabytes} MB, baseline: a process with the SDK and one small upload")
        peaks = {}
        for way in ("usual", "ours"):
            baseline, peaks[way], seconds = measure(way, film, server)
            print(f"{way:6} {baseline:6.1f} MB + {peaks[way]:6.1f} MB at the peak, {seconds:.1f} s")
    print(f"ours: + {peaks['ours']:.1f} MB (target: + {WANTED_MB} MB or less)")
    print(f"measured in {time.monotonic() - start:.0f} s")
    return 0 if peaks["ours"] <= WANTED_MB else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
