#!/bin/bash
# Inside the machine: a node as the README makes one, with a pool of LVM, and a cluster of one member on it. Its host loses everything but
# the disks, twice: first its processes, then mounts and activation as well, as in a reboot. No row goes, and nothing is copied.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json
# Everything that is started here is in it, and nothing else.
processes=/sys/fs/cgroup/node

start_daemon() {
    mkdir -p "$processes"
    bash -c "echo \$\$ >$processes/cgroup.procs; exec pgstead node run" >>/var/log/pgstead.log 2>&1 &
}
kill_everything() { kill_group "$processes"; }
sql() { pgstead psql app -- -At -c "$1"; }

! pgstead pool create nvme --device /dev/vdc </dev/null >/tmp/said 2>&1 || fail "it did not ask"
grep -q "give --yes if you are sure" /tmp/said || fail "$(cat /tmp/said)"
pgstead pool create nvme --device /dev/vdc --dry-run
[ -z "$(vgs --noheadings)" ] || fail "a dry run has made a group"
pgstead pool create nvme --device /dev/vdc --yes
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
timeout 120 pgstead cluster create app --members 1 || fail "the cluster does not come to be"
within 60 pgstead psql app -- -At -c "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id"
say "the cluster takes clients"
findmnt -n -o SOURCE,FSTYPE,OPTIONS --target "$(ls -d /var/lib/pgstead/volumes/nvme/*/data)"
lvs --noheadings -o lv_name,lv_size,data_percent nvme
volumes() { lvs --noheadings -o lv_name nvme | grep vol- | tr -d ' '; }
volume=$(volumes)

# In MiB, as Postgres' user sees it.
room() { df --output=size -BM "$data" | tail -n 1 | tr -dc 0-9; }
at_least() { [ "$(room)" -ge "$1" ] || { echo "$(room) MiB"; false; }; }
export -f room at_least
export data=$(ls -d /var/lib/pgstead/volumes/nvme/*/data)
timeout 60 pgstead cluster update app --volume-size 4GB || fail "the volume does not grow"
at_least 3700 || fail "the operation has ended, and the file system is as it was"
# Asking for less changes nothing of what is there.
timeout 60 pgstead cluster update app --volume-size 2GB --volume-limit 5GB || fail "there is no limit now"
at_least 3700 || fail "it got smaller"
# Room is taken from the file system alone.
fallocate -l 3300M "$data/other"
within 60 bash -c "at_least 4700"
rm "$data/other"
# What the node says of it follows in a moment.
within 20 bash -c 'pgstead volume list | grep "5.0 GiB *present"'
within 20 bash -c 'pgstead node show db1 | grep "nvme (lvm): fine"'
say "its volume grows when it is told to, and when it is nearly full"

pgstead snapshot create app
pgstead snapshot create app --keep 1s
within 60 bash -c '[ "$(lvs --noheadings -o lv_name nvme | grep -c snap-)" = 1 ]'
within 20 bash -c '[ "$(pgstead snapshot list --cluster app | grep -c " kept")" = 1 ]'
timeout 60 pgstead cluster update app --snapshots "every 1h keep 1d" || fail "there is no schedule"
within 60 bash -c '[ "$(lvs --noheadings -o lv_name nvme | grep -c snap-)" = 2 ]'
say "a snapshot is kept, one whose time is over is not, and one is taken by itself"

begun=$(date +%s%N)
timeout 120 pgstead cluster fork app twin || fail "there is no fork"
say "a fork takes $((($(date +%s%N) - begun) / 1000000)) ms"
in_twin() { pgstead psql twin -- -At -c "$1"; }
[ "$(in_twin "SELECT count(*) FROM t")" = 1000 ] || fail "the fork lacks rows"
in_twin "DELETE FROM t" >/dev/null
[ "$(sql "SELECT count(*) FROM t")" = 1000 ] || fail "the source lost what its fork has deleted"
within 20 bash -c '[ "$(pgstead snapshot list | grep -c " fork ")" = 0 ]'
kept=$(pgstead snapshot list --cluster app | grep ' kept' | cut -d' ' -f1)
timeout 120 pgstead cluster fork app old --snapshot "$kept" || fail "there is no fork of a snapshot"
[ "$(pgstead psql old -- -At -c "SELECT count(*) FROM t")" = 1000 ] || fail "the fork of a snapshot lacks rows"
for fork in twin old; do
    timeout 60 pgstead cluster delete "$fork" --yes || fail "$fork is not deleted"
done
within 60 bash -c '[ "$(lvs --noheadings -o lv_name nvme | grep -c vol-)" = 1 ]'
say "a fork has the source's rows, and neither sees what the other writes"

say "every process dies"
kill_everything
start_daemon
within 60 pgstead psql app -- -At -c "INSERT INTO t VALUES (1001)"
[ "$(sql "SELECT count(*) FROM t")" = 1001 ] || fail "rows are missing"

say "and the host begins anew"
kill_everything
umount /var/lib/pgstead/volumes/nvme/*
vgchange -q -an nvme
start_daemon
within 60 pgstead psql app -- -At -c "INSERT INTO t VALUES (1002)"
[ "$(sql "SELECT count(*) FROM t")" = 1002 ] || fail "rows are missing"
[ "$(volumes)" = "$volume" ] || fail "it is another volume"
say "no row is lost, on the same volume"

timeout 60 pgstead cluster delete app --yes || fail "the cluster is not deleted"
within 60 bash -c '[ -z "$(lvs --noheadings -o lv_name nvme | grep -vE "pool|ballast")" ]'
say "nothing is left of a deleted cluster"
kill_everything
