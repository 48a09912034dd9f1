#!/bin/bash
# Starts what TASK names, as virtex-benchmarks' own script does: TASK=echo-server, bert-client, ...
# Every other setting comes by the environment, too, under the names of virtex-benchmarks.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here:${PYTHONPATH:-}" # settings.py, which the pairs share
cd "$here/${TASK%-*}"
case "${TASK##*-}" in
server)
    exec gunicorn server:app --worker-class virtex.VirtexWorker \
        --workers "$NUM_VIRTEX_WORKERS" --bind "127.0.0.1:$VIRTEX_TARGET_PORT" \
        --worker-connections "$MAX_CONCURRENT_CONNECTIONS" --timeout 120 --log-level "$LOG_LEVEL"
    ;;
client)
    exec python3 client.py
    ;;
*)
    echo "TASK: expected a pair and its side, as echo-server, got $TASK" >&2
    exit 1
    ;;
esac
