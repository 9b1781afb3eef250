# shellcheck shell=bash
# Machines for the tests of the packages: a root from debootstrap, in which systemd runs as it would after a boot, with processes,
# mounts, network, host name and control groups of its own. To be sourced by a script that is root and has set `work`, a temporary
# folder. One machine at a time.

# Where the kernel shows the second version of control groups depends on the system; a mount of our own is everywhere the same.
prepare_cgroups() {
    cgroups=${work:?}/cgroups
    mkdir "$cgroups"
    mount -t cgroup2 cgroup2 "$cgroups"
}

# Sets `base` to an archive of a minimal Debian with the packages "$@" in it, which it makes where there is none yet.
make_base() {
    local suite mirror root=$work/base
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    base=target/packages/debian-$(printf '%s\n' "$suite" "$@" | sha256sum | cut -c 1-16).tar
    [ ! -e "$base" ] || return 0
    # The mirror that this machine itself uses.
    # shellcheck disable=SC2016 # apt's fields
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 'Component: main' | sed -n 1p)
    printf 'packages: making a Debian %s by debootstrap from %s\n' "$suite" "$mirror"
    # What it mounts is gone with it, even if it fails.
    unshare --mount debootstrap --variant=minbase --include="$(IFS=,; printf '%s' "$*")" "$suite" "$root" "$mirror" \
        >"$work/debootstrap" 2>&1 || {
        tail -n 20 "$work/debootstrap" >&2
        fail "debootstrap made no root"
    }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -cf "$base.part" .
    mv "$base.part" "$base"
    rm -rf "$root"
}

# Starts a machine from the archive $1.
start_machine() {
    root=$work/machine
    mkdir "$root" "$cgroups/tstunnel-test.$$"
    tar -C "$root" -xf "$1"
    (
        echo 0 >"$cgroups/tstunnel-test.$$/cgroup.procs"
        exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --net --cgroup \
            tests/packages/boot.sh "$root"
    ) </dev/null >"$work/console" 2>&1 &
    launcher=$!
    await "the machine has a first process" first_process
    await "systemd has started" inside systemctl is-active --quiet multi-user.target
}

first_process() {
    machine=$(cat "/proc/$launcher/task/$launcher/children" 2>/dev/null) && machine=${machine% } && [ -n "$machine" ] &&
        [ "$(cat "/proc/$machine/comm")" = systemd ]
}

# Runs a command in the machine, as its root.
inside() {
    nsenter --all --target "$machine" -- env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

stop_machine() {
    [ -n "${launcher:-}" ] || return 0
    # With its first process everything in the machine ends.
    kill -KILL "$launcher" 2>/dev/null || true
    wait "$launcher" 2>/dev/null || true
    launcher=
    await "the machine has ended" remove_cgroups
    rm -rf "$root"
}

# A group can be removed when its last process has not only ended, but is gone.
remove_cgroups() {
    find "$cgroups/tstunnel-test.$$" -depth -type d -exec rmdir {} +
}

# Waits until a command succeeds, for half a minute at most.
await() {
    local what=$1 end=$((SECONDS + 30))
    shift
    until "$@" 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain: $what"
        sleep 0.05
    done
}
