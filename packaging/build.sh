#!/usr/bin/env bash
# Makes the packages of one kind of the program that is built, in target/packages, and says how large they are.
# Usage: build.sh deb|rpm
#
# What is in them is prepared in target/packages/staged, where the tables `package.metadata` of Cargo.toml look for it.
# The same commit and program make the same packages, byte for byte.
set -euo pipefail

[ $# -eq 1 ] || { printf 'usage: %s deb|rpm\n' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
packages=target/packages
staged=$packages/staged
mkdir -p "$packages"
# Two at once take turns.
exec 9>"$packages/.lock"
flock 9

fail() {
    printf 'packages: %s\n' "$1" >&2
    exit 1
}

metadata=$(cargo metadata --locked --offline --no-deps --format-version 1)
version=$(sed -n 's/.*"name":"tstunnel","version":"\([^"]*\)".*/\1/p' <<<"$metadata")
[ -n "$version" ] || fail "cargo tells no version"
# The server belongs to the very program that it is packaged with; the tools cannot say that by themselves.
for line in "depends = \"tstunnel (= $version-1), " "tstunnel = \"= $version\""; do
    grep -q "^$line" Cargo.toml || fail "Cargo.toml has no line \`$line\`: tstunnel-server depends on another version"
done

# Of the commit, where there is one; else of the newest thing that is told of.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH

# What $1, deb or rpm, is made of.
stage() {
    local page unit rights='' # of systemd's for the service, besides those in the unit
    # There /etc/shadow is closed to whoever has no right to read all files.
    [ "$1" = deb ] || rights=' CAP_DAC_READ_SEARCH'
    rm -rf "$staged"
    mkdir -p "$staged"/{man,units}
    for page in man/*; do
        mkdir -p "$staged/man/man${page##*.}"
        gzip -9n <"$page" >"$staged/man/man${page##*.}/${page##*/}.gz"
    done
    for unit in tstunnel.service tstunnel.socket tstunnel-user.service tstunnel-mutagen.service; do
        # Debian 12 and RHEL 9 have a systemd before 253, as the unit says. The shell's own kill(1) is there everywhere.
        # shellcheck disable=SC2016 # systemd's variable
        sed -e 's|/usr/local/bin/|/usr/bin/|' -e '/^# Before systemd 253/d' \
            -e 's|^Type=notify-reload|Type=notify\nExecReload=/bin/sh -c "kill -HUP $$MAINPID"|' \
            -e "s|^CapabilityBoundingSet=.*|&$rights|" \
            "packaging/$unit" >"$staged/units/$unit"
    done
    gzip -9n <CHANGELOG.md >"$staged/changelog.gz"
    local package
    for package in tstunnel tstunnel-server; do
        printf '%s (%s-1) unstable; urgency=medium\n\n  * See changelog.gz for what is new.\n\n -- %s  %s\n' \
            "$package" "$version" "$(sed -n 's/^maintainer = "\(.*\)"$/\1/p' Cargo.toml)" \
            "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$staged/$package.changelog.gz"
    done
    cp -R README.md CHANGELOG.md LICENSE-* packaging/{completions,server.toml,tstunnel-server.sysusers} "$staged/"
    cp "${CARGO_TARGET_DIR:-target}/release/tstunnel" "$staged/"
    # cargo-generate-rpm keeps the times of files that are older than the commit.
    find "$staged" -exec touch --date "@$SOURCE_DATE_EPOCH" {} +
}

case $1 in
deb)
    stage deb
    rm -f "$packages"/*.deb
    cargo deb --quiet --locked --offline --no-build --no-strip --output "$packages/" >/dev/null
    cargo deb --quiet --locked --offline --no-build --no-strip --variant server --output "$packages/" >/dev/null
    ;;
rpm)
    stage rpm
    rm -f "$packages"/*.rpm
    # Not by rpm's own procedure, which is there on some machines only: one result everywhere.
    cargo generate-rpm --auto-req builtin --output "$packages/"
    cargo generate-rpm --auto-req no --variant server --arch noarch --output "$packages/"
    ;;
*) fail "\`$1\` is neither deb nor rpm" ;;
esac

for file in "$packages"/*."$1"; do
    printf '%9d bytes  %s\n' "$(stat -c %s "$file")" "$file"
done
