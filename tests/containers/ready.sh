#!/bin/bash
# In namespaces of its own: Debian's unpacked tools over the machine's, one cgroup tree, and a Docker server.
#   ready.sh TOOLS SCRATCH ADDRESS GROUP
set -euo pipefail
tools=$1 scratch=$2 address=$3 group=$4
mount --make-rprivate /
ip link set lo up
ip address add "$address/32" dev lo
for part in usr etc; do
    mkdir -p "$scratch/$part.upper" "$scratch/$part.work"
    mount -t overlay overlay -o "lowerdir=$tools/$part:/$part,upperdir=$scratch/$part.upper,workdir=$scratch/$part.work" "/$part"
done
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
ln -sf xtables-nft-multi /usr/sbin/iptables
ln -sf xtables-nft-multi /usr/sbin/ip6tables
mkdir -p "$scratch/docker"
mount -t tmpfs tmpfs "$scratch/docker" # it ends with the namespace: nothing has to be deleted
exec dockerd --data-root "$scratch/docker" --exec-root /run/docker --pidfile /run/docker.pid \
    --host unix:///run/docker.sock --cgroup-parent "$group"
