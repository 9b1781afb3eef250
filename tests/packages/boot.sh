#!/usr/bin/env bash
# The first process of a machine of its own: mounts what systemd expects below the folder ROOT, makes that the root and becomes
# systemd. To be started in fresh namespaces, as `machine.sh` does it. Usage: boot.sh ROOT
set -euo pipefail

root=$1
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs dev/shm
ln -s /proc/self/fd dev/fd
mkdir -p run/outside
pivot_root . run/outside
umount -l /run/outside
rmdir /run/outside
exec env -i container=tstunnel PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
