"""Plain HTTP from Python: pip install requests

    export RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=…
    python examples/with_requests.py examples/workflow_api.json

A local worker (`python -m handler --rp_serve_api`) needs neither key nor id:

    ENDPOINT_URL=http://127.0.0.1:8000 python examples/with_requests.py examples/workflow_api.json
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import requests


def main() -> None:
    if len(sys.argv) != 2 or not {"ENDPOINT_URL", "RUNPOD_ENDPOINT_ID"} & os.environ.keys():
        sys.exit(__doc__)
    base = os.environ.get("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v2")
    url = os.environ.get("ENDPOINT_URL") or f"{base}/{os.environ['RUNPOD_ENDPOINT_ID']}"
    headers = {"Authorization": f"Bearer {os.environ.get('RUNPOD_API_KEY', '')}"}
    workflow = json.loads(Path(sys.argv[1]).read_text("utf-8"))

    # /runsync waits for the job up to 90 s; for longer ones use /run and then /status/{id}.
    answer = requests.post(
        f"{url}/runsync", headers=headers, json={"input": {"workflow": workflow}}, timeout=120
    )
    answer.raise_for_status()
    job = answer.json()
    if job["status"] != "COMPLETED":
        sys.exit(f"{job['status']}: {job.get('error')}")

    for result in job["output"]["results"]:
        if "image" in result:
            path = Path("output", Path(result["filename"]).name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base64.b64decode(result["image"]))
            print(path)


if __name__ == "__main__":
    main()
