# worker-comfyui's start: it asks torch for the GPU, then starts ComfyUI from the image, then the
# handler. Without a GPU, what the check costs is the import of torch. Skipped where no start is
# measured.
[ -n "$PEER_NO_CHECK" ] || "$PEER_PYTHON" -c "import torch; torch.cuda.is_available() and torch.cuda.init()"
# shellcheck disable=SC2086 # flags are words
"$PEER_PYTHON" -u "$PEER_COMFYUI/main.py" $PEER_FLAGS --disable-metadata --verbose DEBUG \
    --log-stdout &
# shellcheck disable=SC2086 # a module, or a module that runs another
exec "$PEER_WORKER_PYTHON" -u -m $PEER_HANDLER
