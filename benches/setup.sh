#!/usr/bin/env bash
# Builds the one peer of the comparison that Debian does not have, below the folder that is given; the others are tests/setup.sh's.
set -euo pipefail

version=1.14.1
root="${1:?the folder for builds is missing}/websocat-$version"
if [ ! -x "$root/bin/websocat" ]; then
    printf 'setup: building websocat %s, which takes some minutes\n' "$version"
    cargo install --quiet --locked websocat --version "$version" --root "$root" \
        --no-default-features --features ssl,tokio-process,unix_stdio,signal_handler
fi
