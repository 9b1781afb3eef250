#!/usr/bin/env bash
# What must hold of the packages that `make deb rpm` has made: that their own checkers have nothing to say of them, and that each kind
# can be installed, upgraded under a live session, removed and purged in a machine of its own, where the demonstration works too.
# It needs root, for the machines (see machine.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=target/packages
mutagen=${1:-target/mutagen-v0.18.1}
began=$SECONDS

fail() {
    printf 'packages: %s\n' "$1" >&2
    exit 1
}

say() {
    printf '%4d s  %s\n' "$((SECONDS - began))" "$*"
}

[ "$(id -u)" -eq 0 ] || fail "this needs root: machines are started, and packages are installed in them"
work=$(mktemp -d "${TMPDIR:-/tmp}/tstunnel-packages.XXXXXX")
# shellcheck source=tests/packages/machine.sh
. tests/packages/machine.sh
prepare_cgroups

finish() {
    local status=$?
    trap - EXIT
    if [ "$status" -ne 0 ] && [ -n "${launcher:-}" ]; then
        inside journalctl --no-pager --quiet --unit tstunnel.service --lines 20 --output cat | cut -c 1-200 >&2 || true
        [ ! -s "$work/output" ] || cat "$work/output" >&2
    fi
    (stop_machine) || true
    umount "$cgroups" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

same() {
    [ "$2" = "$3" ] || fail "$1: expected \`$2\`, got \`$3\`"
}

# What a command says is shown only if the test fails.
quietly() {
    "$@" >"$work/output" 2>&1 || fail "failed: $*"
}

refused() {
    local why=$1
    shift
    ! "$@" >"$work/output" 2>&1 || fail "$why"
}

version=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
debs=("$packages"/tstunnel{,-server}_"$version"-1_*.deb)
rpms=("$packages"/tstunnel{,-server}-"$version"-1.*.rpm)

check_files() {
    local file
    for file in "${debs[@]}" "${rpms[@]}"; do
        [ -f "$file" ] || fail "there is no $file: make deb rpm"
    done
    lintian --allow-root --pedantic --info --fail-on error,warning,info,pedantic,experimental "${debs[@]}" >"$work/output" 2>&1 ||
        fail "lintian objects: $(cat "$work/output")"
    say "lintian, pedantic: nothing to say of ${debs[*]##*/}"
    rpmlint --config packaging/rpm/rpmlint.toml --strict "${rpms[@]}" >"$work/output" 2>&1 ||
        fail "rpmlint objects: $(cat "$work/output")"
    say "rpmlint: $(tail -n 1 "$work/output")"
}

# Once more from the same commit: the same bytes.
check_reproducible() {
    local before
    before=$(sha256sum "${debs[@]}" "${rpms[@]}")
    touch man/* packaging/*.* CHANGELOG.md README.md
    quietly packaging/build.sh deb
    quietly packaging/build.sh rpm
    same "packages made twice" "$before" "$(sha256sum "${debs[@]}" "${rpms[@]}")"
    say "made once more, the packages are the same byte for byte"
}

# Packages of an earlier version, from which the real ones are an upgrade. What is in them is the same.
earlier=0.0.9
make_earlier() {
    local file
    mkdir "$work/earlier"
    for file in "${debs[@]}"; do
        dpkg-deb --raw-extract "$file" "$work/raw"
        sed -i -e "s/^Version: .*/Version: $earlier-1/" -e "s/(= $version-1)/(= $earlier-1)/" "$work/raw/DEBIAN/control"
        quietly dpkg-deb -Znone --root-owner-group --build "$work/raw" "$work/earlier/"
        rm -rf "$work/raw"
    done
    quietly cargo generate-rpm --payload-compress none --auto-req builtin --output "$work/earlier" \
        --set-metadata "version = \"$earlier\""
    quietly cargo generate-rpm --payload-compress none --auto-req no --output "$work/earlier" --variant server --arch noarch \
        --set-metadata "version = \"$earlier\"" --set-metadata "requires = { tstunnel = \"= $earlier\", systemd = \"*\" }"
}

# How each kind is installed or upgraded to, and taken away again; packages are in /srv of the machine.
install_deb() {
    inside dpkg --install "$@"
}

install_rpm() {
    inside rpm --force-debian --upgrade --oldpackage "$@"
}

remove_deb() {
    inside dpkg --remove "$@"
}

remove_rpm() {
    inside rpm --force-debian --erase "$@"
}

# To rpm the machine is empty: a package that says what is there lets it check what the packages require, by its own rules.
describe_to_rpm() {
    local provides=$work/provides
    {
        # The last is glibc's word that its loader reads DT_GNU_HASH, which no file says.
        printf '%s\n' /bin/sh systemd 'rtld(GNU_HASH)'
        find "$root"/usr/lib/*-linux-gnu -name '*.so*' -type f | /usr/lib/rpm/find-provides
    } | sort -u | sed 's/^/Provides: /' >"$provides"
    {
        printf '%s\n' 'Name: debian' 'Version: 1' 'Release: 1' 'Summary: what debootstrap installed' 'License: none' 'BuildArch: noarch'
        cat "$provides"
        printf '%s\n' %description Debian. %files
    } >"$work/debian.spec"
    quietly rpmbuild --define "_topdir $work/rpmbuild" -bb "$work/debian.spec"
    cp "$work"/rpmbuild/RPMS/noarch/*.rpm "$root/srv/"
    quietly install_rpm /srv/debian-1-1.noarch.rpm
    # Folders that belong to other packages there, as Fedora's `filesystem`.
    inside mkdir -p /usr/share/licenses /usr/share/zsh/site-functions /usr/share/fish/vendor_completions.d
}

# Every file of the machine, but for those that its own life changes.
list_files() {
    inside find / -xdev \( -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /root -o -path /tmp -o -path /srv -o -path /var/tmp \
        -o -path /var/log/journal -o -path /var/lib/systemd/timers -o -path /home \) -prune -o -print |
        grep -vE '^/(etc/((passwd|group|shadow|gshadow)-|\.pwd\.lock)|var/log/dpkg\.log)$' | sort
}

# $1 are packages as in "$work/earlier" or target/packages, of the kind $kind.
put() {
    cp "$@" "$root/srv/"
    printf '/srv/%s\n' "${@##*/}"
}

# Whether the journal has a line of the service with the pattern $1.
logged() {
    inside journalctl --no-pager --unit tstunnel.service >"$work/journal"
    grep -e "$1" "$work/journal"
}

check_installed() {
    same "the version" "tstunnel $version" "$(inside tstunnel --version | cut -d ' ' -f 1-2)"
    same "the stand-in ssh" /usr/bin/tstunnel "$(inside readlink -f /usr/lib/tstunnel/mutagen/ssh)"
    same "the stand-in scp" /usr/bin/tstunnel "$(inside readlink -f /usr/lib/tstunnel/mutagen/scp)"
    same "where Mutagen finds ssh" MUTAGEN_SSH_PATH=/usr/lib/tstunnel/mutagen \
        "$(inside env TSTUNNEL_MUTAGEN=/usr/bin/env tstunnel mutagen | grep ^MUTAGEN_SSH_PATH=)"
    same "pages" "$(ls man)" "$(inside find /usr/share/man -name 'tstunnel*' -printf '%f\n' | sed 's/\.gz$//' | sort)"
    same "the account" "_tstunnel:/:/usr/sbin/nologin" "$(inside getent passwd _tstunnel | cut -d : -f 1,6,7)"
    same "the account's lock" '!*' "$(inside getent shadow _tstunnel | cut -d : -f 2)"
    same "what is in /etc/tstunnel" /etc/tstunnel/server.toml "$(inside find /etc/tstunnel -type f)"
    refused "the service is enabled" inside systemctl is-enabled --quiet tstunnel.service
    refused "the socket is enabled" inside systemctl is-enabled --quiet tstunnel.socket
    refused "the service runs" inside systemctl is-active --quiet tstunnel.service
    refused "it starts without certificates" inside systemctl start tstunnel.service
    logged 'cannot read /etc/tstunnel/' >"$work/output" || fail "nobody learns why it did not start"
    quietly inside systemctl stop tstunnel.service
}

check_units() {
    local unit line
    quietly inside systemd-analyze --man=no verify tstunnel.service tstunnel.socket
    [ ! -s "$work/output" ] || fail "systemd-analyze verify: $(cat "$work/output")"
    quietly inside env XDG_RUNTIME_DIR=/run systemd-analyze --man=no --user verify \
        /usr/lib/systemd/user/tstunnel-user.service /usr/lib/systemd/user/tstunnel-mutagen.service
    [ ! -s "$work/output" ] || fail "systemd-analyze --user verify: $(cat "$work/output")"
    for unit in system/tstunnel.service user/tstunnel-user.service; do
        line=$(inside systemd-analyze security --offline=true --no-pager "/usr/lib/systemd/$unit" | tail -n 1)
        say "systemd-analyze verify: clean; security --offline: ${unit#*/}: ${line#*: }"
    done
}

# The configuration as it comes, with all that it proposes; the `authorize` command grants what it is asked only by its own account.
configure() {
    inside sh -c '
        set -e
        cd /etc/tstunnel
        tstunnel pki init --dir /root/pki containers.test
        tstunnel pki server --dir /root/pki
        tstunnel pki client --dir /root/pki spiffe://example.net/users/ann
        tstunnel pki client --dir /root/pki spiffe://example.org/users/bob
        cp /root/pki/containers.test.crt server.crt
        cp /root/pki/containers.test.key server.key
        cp /root/pki/ca.crt clients-ca.crt
        cp /root/pki/ca.crl clients-ca.crl
        sed -i -e s/containers.example.net/containers.test/ -e "s/^#\([^ ]\)/\1/" -e "/^account = \"dev\"/a commands = \"any\"" \
            server.toml
        printf "%s\n" "[host.host123]" "endpoint = \"127.0.0.1:8443\"" "sni = \"host123.containers.test\"" \
            "cert = \"/root/pki/example.net_users_ann.crt\"" "key = \"/root/pki/example.net_users_ann.key\"" \
            "ca = \"/root/pki/ca.crt\"" >config.toml
    ' >"$work/output" 2>&1 || fail "the server cannot be configured"
}

check_accounts() {
    same "whose a session is" dev "$(inside tstunnel exec host123 -- id -un)"
    same "whose one is that the authorize command grants" dev "$(inside tstunnel exec \
        --cert /root/pki/example.org_users_bob.crt --key /root/pki/example.org_users_bob.key host123 -- id -un)"
}

main_process() {
    inside systemctl show --property MainPID --value tstunnel.service
}

succeeded() {
    [ "$(main_process)" != "$1" ] && [ "$(inside systemctl is-active tstunnel.service)" = active ]
}

ended() {
    ! inside test -e "/proc/$1"
}

# One line to the live session's `cat`, and back.
ask() {
    local reply=
    printf '%s\n' "$1" >&"${session[1]}" || fail "the session is over: $1"
    IFS= read -r -t 30 reply <&"${session[0]}" || fail "the session says nothing: $1"
    same "what the session says" "$1" "$reply"
}

# Sessions that come one after another until there is /srv/enough: a line for each that fails.
knock() {
    # shellcheck disable=SC2016 # the inner shell's
    inside sh -c 'until [ -e /srv/enough ]; do
        if tstunnel exec host123 -- true 2>>/srv/knocked; then echo came >>/srv/knocked; else echo failed >>/srv/knocked; fi
    done'
}

upgrade_under_load() {
    local first before after knocking input process which
    coproc session { inside tstunnel exec host123 -- cat; }
    # shellcheck disable=SC2154 # coproc sets it
    process=$session_PID
    input=${session[1]}
    ask "before the upgrade"
    knock &
    knocking=$!
    await "somebody has come" inside grep -qs came /srv/knocked
    before=$(main_process)
    if [ "$kind" = deb ]; then
        printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
        chmod +x "$root/usr/sbin/policy-rc.d"
        quietly "install_$kind" "${new[@]}"
        same "the main process, where policy-rc.d forbids a restart" "$before" "$(main_process)"
        rm "$root/usr/sbin/policy-rc.d"
    fi
    first=$before
    for which in new old new; do
        before=$(main_process)
        local -n wanted=$which
        quietly "install_$kind" "${wanted[@]}"
        await "a new process serves" succeeded "$before"
        after=$(main_process)
        same "the program that serves now" /usr/bin/tstunnel "$(inside readlink "/proc/$after/exe")"
        ask "after the change to the $which packages"
        inside tstunnel exec host123 -- true || fail "the new server serves nobody"
    done
    : >"$root/srv/enough"
    wait "$knocking"
    refused "a session failed during the upgrade: $(grep -v came "$root/srv/knocked")" inside grep -qv came /srv/knocked
    same "restarts by systemd" 0 "$(inside systemctl show --property NRestarts --value tstunnel.service)"
    inside test -e "/proc/$first" || fail "the first process has not waited for its session"
    exec {input}>&-
    wait "$process" || fail "the session that lived through the upgrade failed"
    await "the first process has ended" ended "$first"
    say "upgraded, downgraded and upgraded under a live session: it went on, and of $(wc -l <"$root/srv/knocked") others meanwhile none failed"
}

demonstrate() {
    mkdir -p "$root/srv/demo/packaging"
    cp -r src "$root/srv/demo/"
    cp packaging/demo.sh "$root/srv/demo/packaging/"
    cp -r "$mutagen" "$root/srv/demo/mutagen"
    quietly inside /srv/demo/packaging/demo.sh /usr/bin/tstunnel /srv/demo/mutagen
    say "the demonstration: $(tail -n 1 "$work/output" | sed 's/^ *//')"
}

# The administrator's own files in /etc/tstunnel.
own=$(printf '/etc/tstunnel/%s\n' clients-ca.crl clients-ca.crt config.toml server.crt server.key)

take_away_deb() {
    quietly remove_deb tstunnel-server
    stopped
    inside test -e /etc/tstunnel/server.toml || fail "a removal took the configuration with it"
    quietly install_deb "${new[@]}"
    inside systemctl is-enabled --quiet tstunnel.service || fail "a removal forgot that the service was enabled"
    refused "tstunnel can be removed while its server needs it" inside dpkg --remove tstunnel
    quietly inside dpkg --purge tstunnel-server tstunnel
    same "what a purge leaves" "/etc/tstunnel
$own" "$(list_files | comm -13 "$work/before" -)"
    inside getent passwd _tstunnel >/dev/null || fail "a purge took the account, whose number somebody else may get"
}

take_away_rpm() {
    refused "tstunnel can be removed while its server needs it" remove_rpm tstunnel
    quietly remove_rpm tstunnel-server tstunnel
    stopped
    # rpm has no purge: what was configured and logged is somebody's.
    same "what a removal leaves" "$(printf '%s\n' /etc/tstunnel "$own" /etc/tstunnel/server.toml.rpmsave /var/log/tstunnel | sort)" \
        "$(list_files | comm -13 "$work/before" -)"
}

# The server has ended by itself, not by systemd's SIGKILL.
stopped() {
    logged ' tstunnel\[.*"event":"stop"' >"$work/output" || fail "the server does not say that it stops"
    refused "the server was killed" logged 'signal SIGKILL'
    refused "the service runs after its removal" inside systemctl is-active --quiet tstunnel.service
    refused "a process is left" inside sh -c 'readlink /proc/[0-9]*/exe | grep -q /usr/bin/tstunnel'
}

test_kind() {
    kind=$1
    local old new
    start_machine "$base"
    [ "$kind" = deb ] || describe_to_rpm
    quietly inside useradd --create-home --password '*' dev
    # shellcheck disable=SC2016 # the machine's shell
    printf '%s\n' '#!/bin/sh' '[ "$(id -un)" = _tstunnel ] && echo "{}"' >"$root/usr/local/bin/grants"
    chmod +x "$root/usr/local/bin/grants"
    list_files >"$work/before"
    mapfile -t old < <(put "$work/earlier"/*."$kind")
    local -n built="${kind}s"
    mapfile -t new < <(put "${built[@]}")
    refused "the server can be installed without the program" "install_$kind" "${new[1]}"
    quietly "install_$kind" "${old[@]}"
    check_installed
    check_units
    configure
    quietly inside systemctl enable --now tstunnel.service
    check_accounts
    upgrade_under_load
    demonstrate
    "take_away_$kind"
    stop_machine
    say "$kind: installed, upgraded, removed$([ "$kind" = rpm ] || printf ' and purged')"
}

check_files
check_reproducible
make_earlier
make_base systemd rpm socat
test_kind deb
test_kind rpm
