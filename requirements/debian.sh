#!/usr/bin/env bash
# Unpacks the servers of the tests that only Debian has into VENV/debian, with the libraries this machine lacks.
#
#   bash requirements/debian.sh VENV
#
# apt downloads and checks the signatures as ever, but keeps its lists here: nothing is installed, and no root
# is needed. On a machine without apt the tests of these servers use what is on PATH, or say what they miss.
set -euo pipefail

folder=$1/debian
lemonldap=(liblemonldap-ng-portal-perl libplack-perl libstring-random-perl libcrypt-jwt-perl libio-string-perl
    libmime-tools-perl libemail-sender-perl)
packages=(nginx haproxy curl openssl redis-server glewlwyd dbconfig-no-thanks softhsm2 opensc "${lemonldap[@]}")

say() { printf '%s\n' "$*" >&2; }

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "==> no apt here: the tests of ${packages[*]} use those on PATH, or are skipped"
    exit 0
fi

say "==> Debian's packages ${packages[*]}, unpacked into $folder"
rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
folder=$(cd "$folder" && pwd)

quietly() { "$@" >"$folder/apt/log" 2>&1 || { cat "$folder/apt/log" >&2; exit 1; }; }

apt() {
    quietly apt-get --quiet --yes --no-install-recommends \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 -o Debug::NoLocking=1 -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt" "$@"
}

apt update
# promtool has a package of its own from Debian 13 on
if apt-cache -o Dir::State::lists="$folder/apt/lists" show promtool >/dev/null 2>&1; then
    packages+=(promtool)
else
    packages+=(prometheus)
fi
apt install --download-only --reinstall "${packages[@]}"
for package in "$folder"/apt/archives/*.deb; do
    dpkg-deb --extract "$package" "$folder"
done
rm -rf "$folder/apt"
