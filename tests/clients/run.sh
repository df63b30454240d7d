#!/usr/bin/env bash
# Starts an agent, lets real clients publish to it, stops it, and has its Parquet read by pyarrow. See README.md.
# usage: run.sh FOREBAY PYTHON [DIRECTORY_WITH_MQTT_JS]
set -euo pipefail

forebay=$1
python=$2
node_modules=${3:+$3/node_modules}
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

# An authority, a certificate of the server, and of two devices.
sign() { # NAME EXTENSION
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
        -keyout "$dir/$1.key" -out "$dir/$1.csr" 2>>"$dir/openssl.log"
    openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days 2 \
        -extfile <(echo "$2") -out "$dir/$1.pem" 2>>"$dir/openssl.log"
}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=Forebay test CA" -days 2 \
    -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>>"$dir/openssl.log"
sign server "subjectAltName = DNS:localhost, IP:127.0.0.1"
sign device-1 "extendedKeyUsage = clientAuth"
sign device-2 "extendedKeyUsage = clientAuth"

# Written by mosquitto's own tool where it is installed.
if command -v mosquitto_passwd >/dev/null; then
    mosquitto_passwd -b -c "$dir/passwd" ann secret 2>/dev/null
else
    echo "# nobody" >"$dir/passwd"
fi
echo "another secret" | "$forebay" passwd add bob --file "$dir/passwd"
cat >"$dir/acl" <<'ACL'
topic write site/#
topic write raw/#
user ann
topic write site/login/#
user bob
topic write site/login/#
pattern write site/%u/#
ACL
sed "s|DIR|$dir|g" "$here/forebay.toml" "$here/listeners.toml" >"$dir/forebay.toml"

FOREBAY__DATA_DIR="$dir/data" "$forebay" check --config "$dir/forebay.toml" >"$dir/check" || { cat "$dir/check"; exit 1; }
FOREBAY__DATA_DIR="$dir/data" "$forebay" run --config "$dir/forebay.toml" 2>"$dir/log" &
agent=$!

# The agent's own lines say where it listens.
SECONDS=0
until [ "$(grep -cs '"message":"Listening' "$dir/log")" = 4 ]; do
    if ! kill -0 "$agent" 2>/dev/null || [ "$SECONDS" -gt 60 ]; then
        echo "the agent does not listen:" >&2
        cat "$dir/log" >&2
        exit 1
    fi
    sleep 0.05
done

NODE_PATH=$node_modules "$python" "$here/publish.py" "$dir" "$here"

kill -TERM "$agent"
wait "$agent"
agent=
if grep '"level":"ERROR"' "$dir/log"; then
    echo "the agent logged errors" >&2
    exit 1
fi

FOREBAY__DATA_DIR="$dir/data" "$forebay" verify --config "$dir/forebay.toml"
"$python" "$here/read_back.py" "$dir/data/datasets" "$dir/sent.json"
