#!/usr/bin/env bash
# Makes what the virtual machine of `make vm` boots from, under target/vm-root: a kernel, a small first root, and a disk
# image with LVM, the tools around it and Postgres. Nothing is installed on this machine: the packages are Debian's own, fetched
# and checked against Debian's signatures by apt, and only unpacked.
#
# Usage: scripts/vm-root.sh [--have]     (--have only says whether it is there, by the exit status)
#   SUITE=bookworm    the release of Debian that the machine has
set -euo pipefail
cd "$(dirname "$0")/.."
own="scripts/$(basename "$0")"

suite=${SUITE:-bookworm}
home="$PWD/target/vm-root"
[ "$suite" = bookworm ] || home="$home-$suite"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# What makes the machine what it is.
made_as="$suite $(cat "$own" tests/vm/first-init tests/vm/init | sha256sum | cut -c 1-16)"

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
have() { [ "$(cat "$home/made" 2>/dev/null)" = "$made_as" ]; }

if have; then exit 0; fi
if [ "${1-}" = --have ]; then exit 1; fi
for tool in apt-get apt-cache dpkg-deb mke2fs; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null 2>&1 ||
        fail "this machine has no $tool; the virtual machine can be made on Debian and its kin only"
done
export PATH="$PATH:/usr/sbin:/sbin"
[ -r "$keys" ] || fail "$keys is missing; install Debian's package debian-archive-keyring"

work="$home.work"
rm -rf "$work" "$home"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/kernel" "$work/root" "$work/first"
trap 'rm -rf "$work"' EXIT
{
    echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main"
    echo "deb [signed-by=$keys] http://deb.debian.org/debian-security $suite-security main"
} >"$work/sources.list"
apt=(-qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root -o Acquire::Languages=none
    -o Acquire::Retries=3 -o APT::Update::Error-Mode=any)

say "will fetch a kernel, LVM and Postgres of Debian's $suite into ${home#"$PWD/"}, for the virtual machine (about 200 MB; nothing is installed)"
apt-get "${apt[@]}" update || fail "apt-get could not fetch the lists of $suite; see its own words above"
depends() {
    apt-cache "${apt[@]}" depends "$@" --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances
}
kernel=$(depends linux-image-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
postgres=$(depends postgresql | sed -n 's/^ *Depends: \(postgresql-[0-9]*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] && [ -n "$postgres" ] || fail "Debian's $suite names no kernel or no Postgres"
programs=(base-files base-passwd bash busybox-static coreutils cryptsetup-bin dmsetup e2fsprogs grep iproute2 kmod libc-bin lvm2 mount nftables
    "$postgres" "postgresql-client-${postgres#*-}" procps sed thin-provisioning-tools tzdata util-linux xfsprogs)
# Their libraries. The compiler for queries is a library of its own, and huge.
mapfile -t libraries < <(depends --recurse "${programs[@]}" | grep -E '^(lib|zlib1g)' | grep -vE '^(libllvm|libperl|libpython|.*-perl$)' | sort -u)
# Names that only other packages provide cannot be fetched.
mapfile -t libraries < <(apt-cache "${apt[@]}" show --no-all-versions "${libraries[@]}" 2>/dev/null | sed -n 's/^Package: //p' | sort -u)
(cd "$work/debs" && apt-get "${apt[@]}" download "$kernel" "${programs[@]}" "${libraries[@]}") ||
    fail "apt-get could not fetch the machine's packages; see its own words above"
mv "$work/debs/$kernel"_*.deb "$work/kernel.deb"
dpkg-deb -x "$work/kernel.deb" "$work/kernel"
for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
rm -rf "$work/debs" "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale" \
    "$work/root/usr/lib/postgresql"/*/lib/llvmjit.so "$work/root/usr/lib/postgresql"/*/lib/bitcode
# The system's programs and libraries all lie under usr.
for folder in bin sbin lib lib64; do
    [ -d "$work/root/$folder" ] && [ ! -L "$work/root/$folder" ] || continue
    mkdir -p "$work/root/usr/$folder"
    cp -a "$work/root/$folder/." "$work/root/usr/$folder/"
    rm -rf "${work:?}/root/$folder"
done
for folder in bin sbin lib lib64; do
    mkdir -p "$work/root/usr/$folder"
    ln -sfn "usr/$folder" "$work/root/$folder"
done

# The kernel's parts that the machine uses, and what those need.
[ -d "$work/kernel/lib" ] || ln -s usr/lib "$work/kernel/lib"
version=$(basename "$work"/kernel/lib/modules/*)
modules="$work/root/usr/lib/modules/$version"
# The unpacked program with its own libraries, under the name by which it knows its task.
kmod() {
    local as=$1
    shift
    "$work/root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$work/root/usr/lib/x86_64-linux-gnu" --argv0 "$as" \
        "$work/root/usr/bin/kmod" "$@"
}
kmod depmod -b "$work/kernel" "$version"
wanted=(virtio_blk virtio_pci ext4 xfs loop dm-mod dm-thin-pool dm-snapshot dm-crypt dm-flakey dm-delay dm-zero dm-bufio
    veth bridge nf_tables nft_ct nf_conntrack virtio_net virtio_rng crc32c_generic aes_generic xts ecb sha256_generic algif_skcipher
    algif_hash sch_netem crypto_simd)
mkdir -p "$modules"
cp "$work/kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$modules/"
for module in "${wanted[@]}"; do
    # What is built in has no file, and what this kernel has not is missed when it is used.
    kmod modprobe -d "$work/kernel" -S "$version" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
done | sort -u | while read -r file; do
    to="$modules/${file#*"/lib/modules/$version/"}"
    mkdir -p "$(dirname "$to")"
    cp "$file" "$to"
done
kmod depmod -b "$work/root/usr" "$version" 2>/dev/null || kmod depmod -b "$work/root" "$version"

# What the packages would have set up when installed.
cat >"$work/root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
postgres:x:105:105:PostgreSQL:/var/lib/postgresql:/bin/bash
END
printf 'root:x:0:\nnogroup:x:65534:\npostgres:x:105:\n' >"$work/root/etc/group"
printf '127.0.0.1 localhost\n' >"$work/root/etc/hosts"
printf 'hosts: files\npasswd: files\ngroup: files\n' >"$work/root/etc/nsswitch.conf"
mkdir -p "$work/root"/{proc,sys,dev,run,tmp,mnt,root,payload,var/lib/postgresql,var/tmp,etc/lvm}
ln -sfn /run/lock "$work/root/var/lock"
ln -sfn bash "$work/root/usr/bin/sh"
# There is no udev in the machine.
cat >"$work/root/etc/lvm/lvmlocal.conf" <<'END'
activation {
    udev_sync = 0
    udev_rules = 0
    verify_udev_operations = 0
    monitoring = 0
}
devices {
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
    use_devicesfile = 0
}
END
cp tests/vm/init "$work/root/sbin/init"
chmod 755 "$work/root/sbin/init"

# The first root only finds the disk with the other one.
mkdir -p "$work/first"/{bin,proc,sys,dev,root,modules}
cp "$work/root/usr/bin/busybox" "$work/first/bin/busybox"
ln -s busybox "$work/first/bin/sh"
: >"$work/first/modules/order"
for module in virtio_pci virtio_blk ext4; do
    kmod modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | while read -r file; do
    name=$(basename "$file")
    grep -qx "$name" "$work/first/modules/order" && continue
    cp "$file" "$work/first/modules/$name"
    echo "$name" >>"$work/first/modules/order"
done
cp tests/vm/first-init "$work/first/init"
chmod 755 "$work/first/init"
mkdir "$home.new" 2>/dev/null || { rm -rf "$home.new" && mkdir "$home.new"; }
(cd "$work/first" && find . | "$work/root/usr/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1 >"$home.new/first.img")
cp "$work/kernel/boot/vmlinuz-$version" "$home.new/kernel"

size_mb=$(($(du -sm "$work/root" | cut -f 1) + 200))
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$work/root" -E root_owner=0:0 "$home.new/root.img" "${size_mb}M" ||
    fail "mke2fs could not make the machine's disk"
echo "$made_as" >"$home.new/made"
mv "$home.new" "$home"
say "done: Linux $version, $(cd "$work/root/usr/sbin" && ls lvm), ${postgres}"
