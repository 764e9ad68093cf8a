"""Runpod's own SDK: pip install runpod

    export RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=…
    python examples/with_sdk.py examples/workflow_api.json

Some guides mention `serverless.call_endpoint`; it does not exist, `runpod.Endpoint` does.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path

import runpod


def main() -> None:
    if len(sys.argv) != 2 or not {"RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID"} <= os.environ.keys():
        sys.exit(__doc__)
    runpod.api_key = os.environ["RUNPOD_API_KEY"]
    endpoint = runpod.Endpoint(os.environ["RUNPOD_ENDPOINT_ID"])
    workflow = json.loads(Path(sys.argv[1]).read_text("utf-8"))

    job = endpoint.run({"input": {"workflow": workflow}})
    while job.status() in ("IN_QUEUE", "IN_PROGRESS"):
        time.sleep(1)
    output = job.output()
    # run_sync() would return only the output, and not say whether the job failed.
    if job.status() != "COMPLETED":
        sys.exit(f"{job.status()}: {output}")

    for result in output["results"]:
        if "image" in result:
            path = Path("output", Path(result["filename"]).name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base64.b64decode(result["image"]))
            print(path)


if __name__ == "__main__":
    main()
