#!/usr/bin/env bash
# Installs what the tests, the demonstration and the benchmark need, on Debian 12 with Rust and Go already there.
# It asks apt-get only for what is missing, and says nothing where nothing is.
set -euo pipefail

refuse() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

command -v cargo >/dev/null || refuse "Rust is missing: install it from https://rustup.rs"
command -v go >/dev/null || refuse "Go 1.22 or newer is missing (it builds the real Mutagen): install it from https://go.dev/dl"

# A program, and the package that brings it.
wanted="
cc:gcc
c++:g++
make:make
git:git
curl:curl
openssl:openssl
ssh:openssh-client
/usr/sbin/sshd:openssh-server
/usr/lib/openssh/sftp-server:openssh-sftp-server
rsync:rsync
haproxy:haproxy
socat:socat
stunnel:stunnel4
tinyproxy:tinyproxy-bin
danted:dante-server
pkg-config:pkg-config
strace:strace
zstd:zstd
gzip:gzip
ip:iproute2
mandoc:mandoc
zsh:zsh
fish:fish
script:bsdutils
systemd-analyze:systemd
setpriv:util-linux
shellcheck:shellcheck
testssl:testssl.sh
sslscan:sslscan
"

missing=()
for pair in $wanted; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
[ -e /usr/share/bash-completion/bash_completion ] || missing+=(bash-completion)
[ -e /usr/include/openssl/ssl.h ] || missing+=(libssl-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || refuse "install these first, there is no apt-get here: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || refuse "these are missing, and installing them takes root or sudo: ${missing[*]}"
        as_root=(sudo)
    fi
    install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}")
    printf 'setup: installing %s\n' "${missing[*]}"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    # The lists may be missing or older than what the mirror still has.
    if ! "${install[@]}" >"$log" 2>&1; then
        if ! { "${as_root[@]}" apt-get -qq update && "${install[@]}"; } >>"$log" 2>&1; then
            cat "$log" >&2
            refuse "apt-get could not install ${missing[*]}"
        fi
    fi
fi

rustup component add rustfmt clippy >/dev/null 2>&1 || true
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || refuse "cargo $part is missing: rustup component add rustfmt clippy"
done

# A debug build of cargo-deny takes half the time of an optimised one and checks the same.
deny=0.20.2
if [ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $deny" ]; then
    printf 'setup: building cargo-deny %s, which takes some minutes\n' "$deny"
    cargo install --quiet --locked --debug --no-default-features cargo-deny --version "$deny"
fi
