#!/usr/bin/env bash
# Starts an agent, lets real clients publish to it, stops it, and has its Parquet read by pyarrow. See README.md.
set -euo pipefail

forebay=$1
python=$2
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
agent=

cleanup() {
    if [ -n "$agent" ]; then
        kill -9 "$agent" 2>/dev/null || true
        wait "$agent" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap cleanup EXIT

FOREBAY__DATA_DIR="$dir/data" "$forebay" run --config "$here/forebay.toml" 2>"$dir/log" &
agent=$!

# The agent's own line says where it listens.
SECONDS=0
until address=$(sed -n 's/.*"message":"Listening.*"\([0-9][0-9.]*:[0-9]*\)".*/\1/p' "$dir/log") && [ -n "$address" ]; do
    if ! kill -0 "$agent" 2>/dev/null || [ "$SECONDS" -gt 60 ]; then
        echo "the agent does not listen:" >&2
        cat "$dir/log" >&2
        exit 1
    fi
    sleep 0.05
done
port=${address##*:}

"$python" "$here/publish.py" "$port" "$dir/data/forebay.sock" "$dir/sent.json"

kill -TERM "$agent"
wait "$agent"
agent=
if grep '"level":"ERROR"' "$dir/log"; then
    echo "the agent logged errors" >&2
    exit 1
fi

FOREBAY__DATA_DIR="$dir/data" "$forebay" verify --config "$here/forebay.toml"
"$python" "$here/read_back.py" "$dir/data/datasets" "$dir/sent.json"
