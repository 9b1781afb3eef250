#!/usr/bin/env bash
# Has systemd read the units as it would at the start, without one that runs, and says how much each still exposes (0 to 10).
# Any word of systemd's about them is a failure.
set -euo pipefail

folder=$(cd "$(dirname "$0")" && pwd)
# The highest exposure that is let pass, in tenths.
most_system=35
most_user=80

copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
version=$(systemd-analyze --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
for unit in tstunnel.service tstunnel.socket tstunnel-user.service tstunnel-mutagen.service; do
    # The program need not be installed for this.
    sed 's|/usr/local/bin/tstunnel|/bin/true|' "$folder/$unit" >"$copies/$unit"
    if [ "$version" -lt 253 ]; then
        # Which systemd does not know yet, as the units say.
        # shellcheck disable=SC2016 # systemd's variable
        sed -i 's|^Type=notify-reload|Type=notify\nExecReload=/bin/kill -HUP $MAINPID|' "$copies/$unit"
    fi
done

fails() {
    printf 'check-units: %s\n' "$1" >&2
    exit 1
}

verify() {
    local said
    said=$(systemd-analyze "$@" 2>&1) || fails "$said"
    # Of other units of this machine nothing is asked.
    said=$(grep tstunnel <<<"$said" || true)
    [ -z "$said" ] || fails "$said"
}

verify --man=no verify "$copies/tstunnel.service" "$copies/tstunnel.socket"
XDG_RUNTIME_DIR=$copies verify --man=no --user verify "$copies/tstunnel-user.service" "$copies/tstunnel-mutagen.service"

exposure() {
    local line
    line=$(systemd-analyze security --offline=true --threshold="$2" --no-pager "$copies/$1" | tail -n 1) || fails "$1: $line"
    printf '%s: %s\n' "$1" "${line#*: }"
}
exposure tstunnel.service "$most_system"
exposure tstunnel-user.service "$most_user"
