#!/usr/bin/env bash
# Puts a newer Postgres with all its tools under target/postgres-17, for the tests that run on two major versions. Nothing is
# installed: the packages are Debian's own of a later release, fetched and checked against Debian's signatures by apt, unpacked
# with the libraries that they were built with, and made to use those.
#
# Usage: scripts/newer-postgres.sh [--have]     (--have only says whether it is there, by the exit status)
set -euo pipefail
cd "$(dirname "$0")/.."

major=17
suite=trixie # The release that has it.
keys=/usr/share/keyrings/debian-archive-keyring.gpg
home="$PWD/target/postgres-$major"
bin="$home/usr/lib/postgresql/$major/bin"
needed=(postgres initdb pg_basebackup pg_rewind pg_controldata pg_waldump pg_ctl psql pgbench)

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
have() {
    local tool
    # The path is inside the programs, so those of a folder that was moved do not start.
    for tool in "${needed[@]}"; do "$bin/$tool" --version >/dev/null 2>&1 || return 1; done
}

if have; then exit 0; fi
if [ "${1-}" = --have ]; then exit 1; fi
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null 2>&1 ||
        fail "this machine has no $tool; put Postgres $major with its tools at $bin by other means"
done
[ -r "$keys" ] || fail "$keys is missing; install Debian's package debian-archive-keyring"

work="$home.work"
rm -rf "$work" "$home"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root"
trap 'rm -rf "$work"' EXIT
echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >"$work/sources.list"
apt=(-qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o Acquire::Retries=3 -o APT::Update::Error-Mode=any)

say "will fetch Postgres $major of Debian's $suite into target/postgres-$major, for the tests (about 70 MB; nothing is installed)"
apt-get "${apt[@]}" update || fail "apt-get could not fetch the lists of $suite; see its own words above"
# The server, its client programs, and the libraries of both. The compiler for queries is a library of its own, and huge.
mapfile -t libraries < <(apt-cache "${apt[@]}" depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances "postgresql-$major" "postgresql-client-$major" |
    grep -E '^lib' | grep -vE '^(libllvm|libperl|.*-perl$)' | sort -u)
# Names that only other packages provide cannot be fetched.
mapfile -t libraries < <(apt-cache "${apt[@]}" show --no-all-versions "${libraries[@]}" 2>/dev/null | sed -n 's/^Package: //p' | sort -u)
(cd "$work/debs" && apt-get "${apt[@]}" download "postgresql-$major" "postgresql-client-$major" patchelf "${libraries[@]}") ||
    fail "apt-get could not fetch Postgres $major; see its own words above"
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done

# It takes the compiler's library, and where there is none of it, Postgres does without.
rm -f "$work/root/usr/lib/postgresql/$major/lib/llvmjit.so"
rm -rf "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale"

# Whoever else has the folder half made would run half a Postgres.
mv "$work/root" "$home"
loader=$(find "$home/usr" -name 'ld-linux*.so.*' | head -n 1)
folders=$(find "$home/usr/lib" -maxdepth 1 -type d -name '*-linux-gnu*')
patchelf() { "$loader" --library-path "$folders" "$home/usr/bin/patchelf" "$@"; }
for program in "$bin"/*; do
    # Some are scripts.
    patchelf --print-interpreter "$program" >/dev/null 2>&1 || continue
    patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$folders" "$program"
done
have || fail "Postgres $major was fetched, and does not start: $("$bin/postgres" --version 2>&1 || true)"
say "done: $("$bin/postgres" --version)"
