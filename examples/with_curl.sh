#!/bin/sh
# export RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=…
# sh examples/with_curl.sh examples/workflow_api.json > reply.json
# jq -er '.output.results[0].image' reply.json | base64 -d > picture.png
# A result in a bucket has a `url` instead of `image`, one that stayed on the volume only its `path`.
#
# A local worker (`comfyui-worker serve --local`) needs neither key nor id:
# ENDPOINT_URL=http://127.0.0.1:8000 sh examples/with_curl.sh examples/workflow_api.json
set -eu

: "${1:?say which workflow, as in the first lines of this file}"
base=${RUNPOD_ENDPOINT_BASE_URL:-https://api.runpod.ai/v2}
url=${ENDPOINT_URL:-$base/${RUNPOD_ENDPOINT_ID:?set it, or ENDPOINT_URL for a local worker}}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The key comes from standard input (-H @-), so that the process list does not show it.
ask() {
  : > "$folder/reply"
  printf 'Authorization: Bearer %s\n' "${RUNPOD_API_KEY:-}" |
    curl -sS --fail-with-body -H @- -H 'Content-Type: application/json' -o "$folder/reply" "$@" ||
    { cat "$folder/reply" >&2; exit 1; }
}
of_reply() { jq -r "$1 // empty" "$folder/reply"; }

jq '{input: {workflow: .}}' "$1" > "$folder/request"
ask "$url/runsync" -d "@$folder/request"
# After 90 s Runpod replies with the job's state; a first start may take longer.
while status=$(of_reply .status) && { [ "$status" = IN_QUEUE ] || [ "$status" = IN_PROGRESS ]; }; do
  echo "$status" >&2
  sleep 2
  ask "$url/status/$(of_reply .id)"
done
cat "$folder/reply"
[ "$status" = COMPLETED ] || { echo "Not completed: ${status:-no status in the reply}." >&2; exit 1; }
