#!/bin/bash
# Inside the machine: a node as the README makes one, with a pool of LVM, and a cluster of one member on it. Its host loses everything but
# the disks, twice: first its processes, then mounts and activation as well, as in a reboot. No row goes, and nothing is copied.
set -euo pipefail
export PATH=/payload:$PATH:$(echo /usr/lib/postgresql/*/bin) PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json

say() { echo "postgres-on-lvm: $*"; }
fail() {
    say "$*"
    tail -n 40 /var/log/pgstead.log
    tail -n 10 /var/lib/pgstead/run/*/postgres.log 2>/dev/null
    exit 1
}
# $1 seconds for the rest to succeed.
within() {
    local left=$1
    shift
    until "$@" >/tmp/said 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { cat /tmp/said; fail "in vain: $*"; }
        sleep 1
    done
}
start_daemon() {
    pgstead node run >>/var/log/pgstead.log 2>&1 &
    daemon=$!
}
psql() { timeout 50 pgstead psql app -- -At -c "$1"; }

mkdir -p /etc/pgstead /var/log
vgcreate -q nvme /dev/vdc
lvcreate -q --type thin-pool --size 6G --poolmetadatasize 32M --chunksize 64k --name pool nvme 2>/dev/null
cat >/etc/pgstead/node.toml <<'END'
name = "db1"
host = "127.0.0.1"
data_dir = "/var/lib/pgstead"
run_as = "postgres"
[[pool]]
name = "nvme"
driver = "lvm"
volume_group = "nvme"
thin_pool = "pool"
volume_size_gib = 3
END
pgstead init
start_daemon
within 60 pgstead status
say "the node runs"
within 1 timeout 75 pgstead cluster create app --members 1
within 20 psql "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id"
say "the cluster takes clients"
findmnt -n -o SOURCE,FSTYPE,OPTIONS --target "$(ls -d /var/lib/pgstead/volumes/nvme/*/data)"
lvs -o lv_name,lv_size,data_percent,lv_tags nvme
volume=$(lvs --noheadings -o lv_name nvme | grep vol-)
life=$(pgstead member list --output json)

say "every process dies"
kill -9 "$daemon"
pkill -9 -f 'pgstead' || true
pkill -9 -u postgres || true
within 20 bash -c '! pgrep -u postgres'
start_daemon
within 60 psql "INSERT INTO t VALUES (1001)"
[ "$(psql "SELECT count(*) FROM t")" = 1001 ] || fail "rows are missing"

say "and the host begins anew"
kill -9 "$daemon"
pkill -9 -f 'pgstead' || true
pkill -9 -u postgres || true
within 20 bash -c '! pgrep -u postgres'
umount /var/lib/pgstead/volumes/nvme/*
vgchange -q -an nvme
start_daemon
within 60 psql "INSERT INTO t VALUES (1002)"
[ "$(psql "SELECT count(*) FROM t")" = 1002 ] || fail "rows are missing"
[ "$(lvs --noheadings -o lv_name nvme | grep vol-)" = "$volume" ] || fail "it is another volume"
say "no row is lost, on the same volume"

pgstead cluster delete app --yes >/dev/null 2>&1 || pgstead cluster delete app
within 60 bash -c '[ -z "$(lvs --noheadings -o lv_name nvme | grep -v pool)" ]'
say "nothing is left of a deleted cluster"
