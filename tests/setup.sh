#!/usr/bin/env bash
# Installs what the tests, the demonstration and the benchmark need, on Debian 12 with Rust and Go already there.
# It asks apt-get only for what is missing, and says nothing where nothing is.
# Usage: setup.sh [packages]; with the word also what packages are made and tried with.
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
valgrind:valgrind
taskset:util-linux
zstd:zstd
gzip:gzip
ip:iproute2
nsenter:util-linux
python3:python3
mandoc:mandoc
zsh:zsh
fish:fish
script:bsdutils
systemd-analyze:systemd
setpriv:util-linux
shellcheck:shellcheck
xmllint:libxml2-utils
testssl:testssl.sh
sslscan:sslscan
"

if [ "${1:-}" = packages ]; then
    wanted+="
xz:xz-utils
lintian:lintian
rpmlint:rpmlint
rpmbuild:rpm
debootstrap:debootstrap
"
fi

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

# Installs version $2 of the cargo command $1 unless it is there; the rest is for cargo. A debug build takes half the time of an
# optimised one and does the same.
install_command() {
    local name=$1 version=$2
    shift 2
    # In which words they say their version differs; what cargo has installed, it knows.
    if ! grep -q "^$name v$version:" <<<"$installed"; then
        printf 'setup: building %s %s, which takes some minutes\n' "$name" "$version"
        cargo install --quiet --locked --debug "$@" "$name" --version "$version"
    fi
}

installed=$(cargo install --list)
install_command cargo-deny 0.20.2 --no-default-features
if [ "${1:-}" = packages ]; then
    # Without its own xz it calls the system's.
    install_command cargo-deb 3.8.0 --no-default-features
    # Its compression and digests would take minutes.
    install_command cargo-generate-rpm 0.21.1 \
        --config 'profile.dev.package.zstd-sys.opt-level=3' --config 'profile.dev.package.sha2.opt-level=3'
fi
