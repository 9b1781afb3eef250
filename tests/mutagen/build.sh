#!/bin/sh
# Builds the real Mutagen into a folder: mutagen, mutagen-agent, and the bundle of agents that mutagen looks for beside itself.
# Usage: build.sh OUT. A second call with the same sources does nothing; two at once take turns.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

case $(go env GOVERSION 2>/dev/null) in
    go1.2[1-9]* | go1.[3-9][0-9]*) ;; # 1.21 fetches the newer one that go.mod asks for
    *) echo "$0: Go 1.22 or newer is needed to build Mutagen for the tests" >&2; exit 1 ;;
esac

exec 9>"$out/.lock"
flock 9

sources=$(cat go.mod go.sum build.sh | sha256sum)
if [ -f "$out/.built" ] && [ "$(cat "$out/.built")" = "$sources" ]; then
    exit 0
fi

work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Without its tag the agent panics, and mutagen knows no protocol, not even the local one.
# The version is the module's own, so nothing is stamped; the rest makes the programs small and the build repeatable.
CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off \
    go build -trimpath -ldflags='-s -w' -tags=mutagencli,mutagenagent -o "$work/" \
    github.com/mutagen-io/mutagen/cmd/mutagen \
    github.com/mutagen-io/mutagen/cmd/mutagen-agent

entry=$(go env GOOS)_$(go env GOARCH)
cp "$work/mutagen-agent" "$work/$entry"
tar -C "$work" --owner=0 --group=0 --mode=0755 -cf - "$entry" | gzip -1 >"$work/mutagen-agents.tar.gz"

mv -f "$work/mutagen" "$work/mutagen-agent" "$work/mutagen-agents.tar.gz" "$out/"
printf '%s\n' "$sources" >"$out/.built"
