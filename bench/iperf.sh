#!/bin/sh
# One iperf3 run natively and one under culvert, side by side. Arguments go to iperf3's client.
# CULVERT names the command if it is not target/release/culvert; PORT the port (default 5299).
set -eu
cd "$(dirname "$0")/.."
culvert=${CULVERT:-target/release/culvert}
port=${PORT:-5299}
server=

trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# one NAME RUNNER...: RUNNER is put before both commands.
one() {
    name=$1
    shift
    "$@" iperf3 -s -1 -B 127.0.0.1 -p "$port" >/dev/null &
    server=$!
    # -1 makes the server serve one client: asking whether it listens must not be that client.
    until ss -Hltn "sport = :$port" | grep -q .; do
        kill -0 "$server" 2>/dev/null || { echo "iperf3 did not start" >&2; exit 1; }
        sleep 0.05
    done
    echo "== $name"
    "$@" iperf3 -c 127.0.0.1 -p "$port" $client_args | grep -E 'sender|receiver|SUM' || true
    wait "$server"
    server=
}

client_args="$*"
one kernel env
one culvert "$culvert" run --
