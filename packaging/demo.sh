#!/usr/bin/env bash
# Shows the whole of it on one machine: a server, certificates, and a real Mutagen that synchronises a folder and forwards
# a socket through it. Everything stands in a temporary folder and is gone afterwards; what doesn't arrive is a failure.
# Usage: demo.sh TSTUNNEL MUTAGEN_FOLDER
set -euo pipefail

[ $# -eq 2 ] || { printf 'usage: %s TSTUNNEL MUTAGEN_FOLDER\n' "$0" >&2; exit 2; }
tstunnel=$(realpath "$1")
TSTUNNEL_MUTAGEN=$(realpath "$2")/mutagen
export TSTUNNEL_MUTAGEN LC_ALL=C
project=$(realpath "$(dirname "$0")/..")

work=$(mktemp -d "${TMPDIR:-/tmp}/tstunnel-demo.XXXXXX")
mkdir "$work"/{client,host,logs}
processes=()

# Nothing of the user's own settings, proxies, agents or daemons takes part.
for variable in $(compgen -v | grep -E '^(TSTUNNEL|MUTAGEN|XDG)_|_(proxy|PROXY)$' | grep -vx TSTUNNEL_MUTAGEN || true); do
    unset "$variable"
done
export HOME=$work/client MUTAGEN_DATA_DIRECTORY=$work/client/mutagen

say() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%7.2f s  %s\n' "$(((now - began) / 10000))e-2" "$*"
}

stop() {
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

finish() {
    local status=$? log
    trap - EXIT
    # From 128 on somebody has interrupted it.
    if [ "$status" -ne 0 ] && [ "$status" -lt 128 ]; then
        printf '\nThe demonstration failed. What its parts said last:\n' >&2
        for log in "$work"/logs/*; do
            printf -- '--- %s\n' "${log##*/}" >&2
            tail -n 20 "$log" >&2
        done
    fi
    # The youngest first: the daemon ends its sessions before their server goes.
    for ((i = ${#processes[@]} - 1; i >= 0; i--)); do
        stop "${processes[i]}"
    done
    rm -rf "$work"
    exit "$status"
}
began=${EPOCHREALTIME/[.,]/}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    printf 'demo: %s\n' "$1" >&2
    exit 1
}

# Waits until a command succeeds: half a minute at most, and only while everything still runs.
await() {
    local what=$1 end=$((SECONDS + 30)) process
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain: $what"
        for process in "${processes[@]}"; do
            kill -0 "$process" 2>/dev/null || fail "a process ended while this was waited for: $what"
        done
        sleep 0.02
    done
}

same() {
    cmp -s "$1" "$2"
}

sha256() {
    sha256sum | cut -d ' ' -f 1
}

in_log() {
    grep -qs "$1" "$work/logs/$2"
}

say "$("$tstunnel" --version), $("$TSTUNNEL_MUTAGEN" version | sed 's/^/mutagen /')"

"$tstunnel" pki init --dir "$work/pki" containers.test >>"$work/logs/pki"
mapfile -t server < <("$tstunnel" pki server --dir "$work/pki" | tee -a "$work/logs/pki")
mapfile -t client < <("$tstunnel" pki client --dir "$work/pki" spiffe://containers.test/users/ann | tee -a "$work/logs/pki")
[ "${#server[@]} ${#client[@]}" = "3 3" ] || fail "there are no certificates"
say "made a certificate authority, and certificates for *.containers.test and for spiffe://containers.test/users/ann"

cat >"$work/server.toml" <<TOML
listen = ["127.0.0.1:0"]
cert = "${server[0]}"
key = "${server[1]}"
client_ca = ["pki/ca.crt"]
crl = ["pki/ca.crl"]
domain = "containers.test"

[host.host123]
home = "$work/host"

[[grant]]
principal = "spiffe://containers.test/users/*"
hosts = ["host123"]
TOML
"$tstunnel" serve --config "$work/server.toml" 2>"$work/logs/server" &
processes+=($!)
await "the server listens" in_log "listening on" server
port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/logs/server")
say "started \`tstunnel serve\` on 127.0.0.1:$port: host123 allows what Mutagen asks for, and nothing else"

parameters="endpoint=127.0.0.1:$port&sni=host123.containers.test&cert=${client[0]}&key=${client[1]}&ca=$work/pki/ca.crt"
if "$tstunnel" exec "tstunnel://host123?$parameters" -- id >"$work/logs/exec" 2>&1; then
    fail "the server ran a command that its policy does not allow"
fi
in_log 'command-denied' exec || fail "a command was refused for another reason than the policy"
say "asked it to run \`id\`: refused (command-denied), as it should be"

"$tstunnel" mutagen daemon run >"$work/logs/mutagen" 2>&1 &
processes+=($!)
await "the Mutagen daemon answers" test -S "$MUTAGEN_DATA_DIRECTORY/daemon/daemon.sock"
say "started a Mutagen daemon, by \`tstunnel mutagen daemon run\`"

local_folder=$work/client/app
remote_folder=$work/host/app
cp -r "$project/src" "$local_folder"
files=$(find "$local_folder" -type f | wc -l)
started=${EPOCHREALTIME/[.,]/}
"$tstunnel" mutagen sync create --name=demo --watch-polling-interval=1 \
    "$local_folder" "tstunnel://host123$remote_folder?$parameters" >"$work/logs/sync-create" 2>&1
took=$((${EPOCHREALTIME/[.,]/} - started))
say "created a synchronisation with tstunnel://host123/…/app in $((took / 1000)) ms; Mutagen installed its agent there"
await "every file is on the host" diff -rq "$local_folder" "$remote_folder" >"$work/logs/diff" 2>&1
say "the host has all $files files, and they are the same"

printf 'from here, %s\n' "$RANDOM" >"$local_folder/here.txt"
await "a change from here is on the host" same "$local_folder/here.txt" "$remote_folder/here.txt"
say "wrote here.txt here: it is on the host"

printf 'from there, %s\n' "$RANDOM" >"$remote_folder/there.txt"
await "a change on the host is here" same "$remote_folder/there.txt" "$local_folder/there.txt"
say "wrote there.txt on the host: it is here"

socat -d -d TCP-LISTEN:0,bind=127.0.0.1,reuseaddr,fork EXEC:cat 2>"$work/logs/echo" &
processes+=($!)
await "the echo service listens" in_log "listening on" echo
echo_port=$(sed -n 's/.*listening on .*127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/logs/echo")
"$tstunnel" mutagen forward create --name=demo "unix:$work/client/echo.sock" \
    "tstunnel://host123/tcp:127.0.0.1:$echo_port?$parameters" >"$work/logs/forward-create" 2>&1
await "the forwarded socket is there" test -S "$work/client/echo.sock"
say "created a forward from a socket here to tstunnel://host123/tcp:127.0.0.1:$echo_port, an echo service"

head -c 16777216 /dev/urandom >"$work/sent"
timeout 60 socat -t 30 - "UNIX-CONNECT:$work/client/echo.sock" <"$work/sent" >"$work/returned" 2>>"$work/logs/echo-client" ||
    fail "the forward carried nothing"
sent=$(sha256 <"$work/sent")
returned=$(sha256 <"$work/returned")
[ "$sent" = "$returned" ] || fail "sent $sent, got $returned back"
say "sent 16 MiB through it, and got the same back: SHA-256 ${sent:0:16}…"

"$tstunnel" mutagen sync terminate demo >"$work/logs/terminate" 2>&1
"$tstunnel" mutagen forward terminate demo >>"$work/logs/terminate" 2>&1
say "everything arrived"
