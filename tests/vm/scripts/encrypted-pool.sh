#!/bin/bash
# Inside the machine: a node whose pool encrypts, and a cluster of one member on it. Its key is changed while Postgres runs, everything dies in the
# middle of that, and the host comes back without its keys, and with them. No row goes, and none is on the disk.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json
# Everything that is started here is in it, and nothing else.
processes=/sys/fs/cgroup/node
keys=/var/lib/pgstead/volume-keys/nvme
marker=a-row-that-nobody-may-read-on-the-disk

start_daemon() {
    mkdir -p "$processes"
    bash -c "echo \$\$ >$processes/cgroup.procs; exec pgstead node run" >>/var/log/pgstead.log 2>&1 &
}
# As when the host begins anew.
reboot() {
    kill_group "$processes"
    umount /var/lib/pgstead/volumes/nvme/* 2>/dev/null || true
    for mapping in $(dmsetup ls --target crypt | grep pgstead- | cut -f 1); do cryptsetup close "$mapping"; done
    vgchange -q -an nvme
}
rows() { pgstead psql app -- -At -c "SELECT count(*) FROM t"; }
with_key() { lvs --noheadings -o lv_tags nvme | grep -c "pgstead.luks_key=$1\b" || true; }
export -f with_key

pgstead pool create nvme --device /dev/vdc --yes >/dev/null
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
volume_size_gib = 1
encrypt = true
END
! pgstead pool rotate-key >/tmp/said 2>&1 || fail "there is no key to take the place of"
grep -q "the daemon makes the first one" /tmp/said || fail "$(cat /tmp/said)"
pgstead init >/dev/null
start_daemon
within 60 pgstead status
[ "$(stat -c %a "$keys/000001.key")" = 600 ] || fail "its key is not for root alone"
timeout 180 pgstead cluster create app --members 1 || fail "the cluster does not come to be"
within 60 pgstead psql app -- -At -c "CREATE TABLE t AS SELECT '$marker' || generate_series(1, 1000) AS row"
sync
findmnt -n -o SOURCE,FSTYPE --target "$(ls -d /var/lib/pgstead/volumes/nvme/*/data)" | grep -q /dev/mapper/pgstead- || fail "it is not a mapping"
# What is between zeros is a line.
grep -r -a -q -F "$marker" /var/lib/pgstead/volumes/nvme/*/data ||
    fail "this is how it would be found"
! grep -z -a -q -F "$marker" /dev/mapper/nvme-pool_tdata || fail "a row is on the disk"
say "the cluster takes clients, and its disk says nothing of them"

pgstead snapshot create app >/dev/null
pgstead pool rotate-key
within 120 bash -c '[ "$(with_key 2)" -ge 1 ]'
say "one of two has the new key, and every process dies"
reboot
start_daemon
within 180 bash -c '[ "$(with_key 1)" = 0 ]'
within 120 bash -c "pgstead status | grep key_not_needed"
within 60 pgstead psql app -- -At -c "INSERT INTO t VALUES ('more')"
within 120 bash -c 'ls /var/lib/pgstead/pool-backups/nvme/headers/*-000002.luks'
rm "$keys/000001.key"
say "both have it, and the old one was deleted"

reboot
mv "$keys/000002.key" /etc/pgstead/kept-key
start_daemon
within 60 grep -q "expected $keys/000002.key" /var/log/pgstead.log
within 120 bash -c "pgstead status | grep volume_locked"
[ -z "$(ls "$keys")" ] || fail "a key was made for what has one"
before=$(lvs --noheadings -o lv_name nvme | sort)
mv /etc/pgstead/kept-key "$keys/000002.key"
within 120 pgstead psql app -- -At -c "INSERT INTO t VALUES ('more')"
[ "$(rows)" = 1002 ] || fail "rows are missing"
[ "$(lvs --noheadings -o lv_name nvme | sort)" = "$before" ] || fail "volumes came or went"
say "without its key the volume is left alone, and it is back with it"

timeout 120 pgstead cluster fork app twin || fail "there is no fork"
[ "$(pgstead psql twin -- -At -c "SELECT count(*) FROM t")" = 1002 ] || fail "the fork lacks rows"
for cluster in twin app; do
    timeout 60 pgstead cluster delete "$cluster" --yes || fail "$cluster is not deleted"
done
within 90 bash -c '[ -z "$(lvs --noheadings -o lv_name nvme | grep -vE "pool|ballast")" ]'
[ -z "$(dmsetup ls --target crypt | grep pgstead-)" ] || fail "a mapping is open"
say "nothing is left of deleted clusters"
kill_group "$processes"
