#!/usr/bin/env bash
# Installs what building, running and testing pgstead needs and this machine lacks; says what before it does.
#
# Usage: scripts/setup.sh [build] [postgres] [test] [vm] [verify]     (all of them when none is named)
#   build      a C compiler and Rust
#   postgres   a Postgres server with its tools, without starting a cluster of its own
#   test       what the tests use besides: a Postgres client that is not ours, ip and nft, and a newer Postgres in target/
#   vm         QEMU, and in target/ the virtual machine with real LVM that volumes are tested in
#   verify     rustfmt, clippy and cargo-deny
# Quick and silent but for one line when nothing is missing. Works on Debian and its kin; elsewhere it names what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

rust_wanted=1.95.0
postgres_wanted=15
# Pinned, so that a new release of it cannot change the verdict on an old commit.
deny_wanted=0.20.2
# A debug build of everything takes about 5 GB, three members of a cluster some 200 MB.
disk_free_wanted_gb=6

export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(build postgres test vm verify)
packages=() # Debian packages.
rust=()     # Any of: toolchain, components.
deny=no
newer=no # Postgres, unpacked under target/.
vm=no    # A kernel and a root for it, under target/.

# What is missing. ----------------------------------------------------------------------------------------------------

# $1 >= $2, as versions.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

has_rust() {
    local version
    version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) && [ -n "$version" ] && at_least "${version%%-*}" "$rust_wanted"
}

# Every server of a recent enough version, with the tools that come in other packages.
has_postgres() {
    local bin
    for bin in /usr/lib/postgresql/*/bin; do
        if at_least "$(basename "$(dirname "$bin")")" "$postgres_wanted" &&
            [ -x "$bin/postgres" ] && [ -x "$bin/pg_rewind" ] && [ -x "$bin/pg_basebackup" ] && [ -x "$bin/pgbench" ]; then
            return 0
        fi
    done
    return 1
}

check_build() {
    if ! has cc || [ ! -e /usr/include/stdio.h ]; then packages+=(gcc libc6-dev); fi
    has make || packages+=(make)
    if ! has_rust; then
        rust+=(toolchain)
        if ! has rustup && ! has curl; then packages+=(curl ca-certificates); fi
    fi
    local free_gb wanted_gb=$disk_free_wanted_gb
    # What is built already need not be built again.
    [ ! -d target/debug/deps ] || wanted_gb=2
    free_gb=$(($(df --output=avail -k . | tail -n 1) / 1024 / 1024))
    [ "$free_gb" -ge "$wanted_gb" ] ||
        fail "$PWD has $free_gb GB free, expected at least $wanted_gb GB for the build; free some space and try again"
}

check_postgres() {
    has_postgres || packages+=("postgresql" postgresql-client postgresql-contrib)
}

check_test() {
    has ip || [ -x /usr/sbin/ip ] || [ -x /sbin/ip ] || packages+=(iproute2)
    has nft || [ -x /usr/sbin/nft ] || packages+=(nftables)
    /usr/bin/python3 -c 'import psycopg2' 2>/dev/null || packages+=(python3-psycopg2)
    scripts/newer-postgres.sh --have || newer=yes
}

check_vm() {
    has qemu-system-x86_64 || packages+=(qemu-system-x86)
    has mke2fs || [ -x /usr/sbin/mke2fs ] || [ -x /sbin/mke2fs ] || packages+=(e2fsprogs)
    [ -r /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
    scripts/vm-root.sh --have || vm=yes
}

check_verify() {
    has_rust || { [[ " ${rust[*]-} " == *" toolchain "* ]] || rust+=(toolchain); }
    if has_rust && ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then rust+=(components); fi
    # Without a command it prints its name and version.
    target/tools/bin/cargo-deny --version 2>/dev/null | grep -q "^cargo-deny $deny_wanted\$" || deny=yes
}

for part in "${parts[@]}"; do
    case "$part" in
    build | postgres | test | vm | verify) "check_$part" ;;
    *) fail "there is no part $part; expected build, postgres, test, vm or verify" ;;
    esac
done

if [ ${#packages[@]} -eq 0 ] && [ ${#rust[@]} -eq 0 ] && [ "$deny$newer$vm" = nonono ]; then
    say "nothing is missing for: ${parts[*]}"
    exit 0
fi
[ ${#packages[@]} -eq 0 ] || say "will install the Debian packages: ${packages[*]}"
[[ " ${rust[*]-} " != *" toolchain "* ]] || say "will install Rust $rust_wanted with rustup, for this user"
[[ " ${rust[*]-} " != *" components "* ]] || say "will install rustfmt and clippy with rustup, for this user"
[ "$deny" = no ] || say "will build cargo-deny $deny_wanted into target/tools (a minute or two, once)"

# Installing it. ------------------------------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@" # Nobody is there to type a password.
    fi
}

install_packages() {
    has apt-get || fail "this machine has no apt-get; install by its own means what Debian calls: ${packages[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || fail "installing needs root; run as root: apt-get install ${packages[*]}"
        as_root true 2>/dev/null || fail "sudo was refused; run as root: apt-get install ${packages[*]}"
    fi
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    # Debian starts a cluster of its own with every new server: it would take port 5432, and nobody asked for it. The
    # setting stands for as long as this installation takes; clusters that are there already are not touched by it.
    local drop_in=/etc/postgresql-common/createcluster.d/pgstead-setup.conf
    as_root mkdir -p "$(dirname "$drop_in")"
    echo "create_main_cluster = false" | as_root tee "$drop_in" >/dev/null
    trap 'as_root rm -f '"$drop_in" EXIT
    "${apt[@]}" update || say "apt-get update failed; going on with the lists that are there"
    "${apt[@]}" install -y --no-install-recommends "${packages[@]}" ||
        fail "apt-get could not install ${packages[*]}; see its own words above"
    as_root rm -f "$drop_in"
    trap - EXIT
}

install_toolchain() {
    if ! has rustup; then
        local host url folder
        host="$(uname -m)-unknown-linux-gnu"
        url="https://static.rust-lang.org/rustup/dist/$host/rustup-init"
        folder=$(mktemp -d)
        curl -fsS --retry 3 -o "$folder/rustup-init" "$url" && curl -fsS --retry 3 -o "$folder/sum" "$url.sha256" ||
            fail "could not fetch $url; install Rust $rust_wanted or newer by hand"
        (cd "$folder" && echo "$(cut -d ' ' -f 1 sum)  rustup-init" | sha256sum --check --quiet) ||
            fail "$url does not have the checksum that is published with it; nothing was installed"
        chmod +x "$folder/rustup-init"
        "$folder/rustup-init" -y --quiet --no-modify-path --profile minimal --component rustfmt --component clippy \
            --default-toolchain "$rust_wanted"
        rm -r "$folder"
    else
        rustup toolchain install "$rust_wanted" --profile minimal --component rustfmt --component clippy
        has_rust || rustup default "$rust_wanted"
    fi
    has_rust || fail "Rust is installed, and cargo is still not $rust_wanted or newer; is another one first in PATH?"
}

install_components() {
    has rustup || fail "rustfmt or clippy is missing; install them by the means by which Rust was installed"
    rustup component add rustfmt clippy
}

install_deny() {
    # Unoptimised: built in half the time, and it checks our tree in three seconds all the same.
    cargo install --quiet --locked --debug --config profile.dev.debug=false --root target/tools \
        --target-dir target/tools/build --force cargo-deny --version "$deny_wanted" ||
        fail "cargo-deny $deny_wanted could not be built; see above"
    rm -rf target/tools/build
}

[ ${#packages[@]} -eq 0 ] || install_packages
for what in "${rust[@]}"; do "install_$what"; done
[ "$deny" = no ] || install_deny
# It says itself what it fetches.
[ "$newer" = no ] || scripts/newer-postgres.sh
[ "$vm" = no ] || scripts/vm-root.sh

# A package may be there and not bring what it was installed for (another release of Debian).
for part in "${parts[@]}"; do
    [ "$part" != postgres ] || has_postgres ||
        fail "no Postgres of version $postgres_wanted or newer under /usr/lib/postgresql; add the repository of apt.postgresql.org"
done
say "done"
