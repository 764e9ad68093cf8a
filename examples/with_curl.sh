#!/bin/sh
# export RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=…
# sh examples/with_curl.sh examples/workflow_api.json
#
# A local worker (`python -m handler --rp_serve_api`) needs neither key nor id:
# ENDPOINT_URL=http://127.0.0.1:8000 sh examples/with_curl.sh examples/workflow_api.json
set -eu

: "${1:?say which workflow, as in the first lines of this file}"
base=${RUNPOD_ENDPOINT_BASE_URL:-https://api.runpod.ai/v2}
url=${ENDPOINT_URL:-$base/${RUNPOD_ENDPOINT_ID:?set it, or ENDPOINT_URL for a local worker}}

# The key comes from standard input (-H @-), so that no list of processes shows it.
printf 'Authorization: Bearer %s\n' "${RUNPOD_API_KEY:-}" |
  curl -sS --fail-with-body "$url/runsync" -H @- -H 'Content-Type: application/json' \
    -d "{\"input\": {\"workflow\": $(cat "$1")}}"
