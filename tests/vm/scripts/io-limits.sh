#!/bin/bash
# Inside the machine: a member on LVM whose spec limits its writes. The kernel holds its Postgres to that, whatever is killed, and lets
# go when the spec does.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json
# As systemd divides a unit: the daemon is in a group of its own below it.
unit=/sys/fs/cgroup/node

start_daemon() {
    local group=$unit/${1:-daemon}
    mkdir -p "$group"
    bash -c "echo \$\$ >$group/cgroup.procs; exec pgstead node run" >>/var/log/pgstead.log 2>&1 &
    daemon=$!
}
kill_daemon() {
    kill -9 "$daemon"
    wait "$daemon" 2>/dev/null || true
}
sql() { pgstead psql app -- -At -c "$1"; }
# 24 MB of log, on disk before it returns; in milliseconds.
write_much() {
    local begun
    begun=$(date +%s%N)
    sql "INSERT INTO t SELECT repeat(md5(i::text), 32) FROM generate_series(1, 24000) AS i" >/dev/null
    echo $((($(date +%s%N) - begun) / 1000000))
}
guard() { grep -o '"pid":[0-9]*' /var/lib/pgstead/run/*/guard.json | tr -dc '0-9\n'; }
postmaster() { head -n 1 "$data/pgdata/postmaster.pid"; }
device() { findmnt -n -o MAJ:MIN --target "$data" | tr -d " "; }
# The only member's group below $1 says so.
limited() { grep -qx "$(device) rbps=max wbps=$2 riops=max wiops=$3" "$1"/pgstead-*/io.max || { cat "$1"/pgstead-*/io.max; false; }; }
unlimited() { [ -z "$(cat "$1"/pgstead-*/io.max)" ] || { cat "$1"/pgstead-*/io.max; false; }; }
# Guard and postmaster are in it.
inside() { grep -qx "$(guard)" "$1"/pgstead-*/cgroup.procs && grep -qx "$(postmaster)" "$1"/pgstead-*/cgroup.procs; }
export -f guard postmaster device limited unlimited inside

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
timeout 120 pgstead cluster create app --members 1 || fail "the cluster does not come to be"
within 60 pgstead psql app -- -At -c "CREATE TABLE t (text text)"
export data=$(ls -d /var/lib/pgstead/volumes/nvme/*/data)
inside "$unit" || fail "a Postgres without limits is not in its group"
unlimited "$unit" || fail "nobody has asked for limits"
free=$(write_much)

timeout 60 pgstead cluster update app --io-write-rate 4MB || fail "limits cannot be set"
within 20 bash -c "limited $unit 4194304 max"
within 20 bash -c 'pgstead cluster show app | grep "write_rate = 4MB, for each member"'
slow=$(write_much)
say "24 MB take $free ms without a limit, and $slow ms with one of 4 MB a second"
[ "$slow" -ge 5000 ] || fail "the limit does not hold"
[ "$free" -lt "$slow" ] || fail "it is as slow without one"

timeout 60 pgstead cluster update app --io-write-rate none --io-write-iops 5000 || fail "limits cannot be changed"
within 20 bash -c "limited $unit max 5000"
timeout 60 pgstead cluster update app --io-write-iops none || fail "limits cannot be taken away"
within 20 bash -c "unlimited $unit"
say "limits are changed and taken away while Postgres runs"

timeout 60 pgstead cluster update app --io-write-rate 4MB || fail "limits cannot be set again"
within 20 bash -c "limited $unit 4194304 max"
before=$(postmaster)
kill_daemon
limited "$unit" 4194304 max || fail "the limit went with the daemon"
start_daemon
echo "$(device) wbps=max" >"$(echo "$unit"/pgstead-*/io.max)"
within 30 bash -c "limited $unit 4194304 max"
[ "$(postmaster)" = "$before" ] || fail "Postgres was started anew"
say "limits outlive the daemon, and what another hand changes is put right"

old=$(guard)
kill -9 "$old"
within 60 bash -c "[ \$(guard) != $old ] && pgstead psql app -- -At -c 'SELECT 1'"
within 20 bash -c "inside $unit && limited $unit 4194304 max"
[ "$(write_much)" -ge 5000 ] || fail "the limit does not hold after the guard's end"
say "limits hold for the next guard's Postgres"

kill_group "$unit"
rmdir "$unit"/pgstead-* "$unit"/daemon
umount /var/lib/pgstead/volumes/nvme/*
vgchange -q -an nvme
start_daemon
within 60 pgstead psql app -- -At -c "SELECT 1"
inside "$unit" && limited "$unit" 4194304 max || fail "Postgres was started before its limits were there"
say "and the host begins anew"

kill_daemon
sed -i '1i cgroup = "/sys/fs/cgroup/other"' /etc/pgstead/node.toml
before=$(postmaster)
start_daemon
within 60 bash -c "inside /sys/fs/cgroup/other && limited /sys/fs/cgroup/other 4194304 max"
[ "$(postmaster)" = "$before" ] || fail "Postgres was started anew"
say "a Postgres that runs is brought into another group"

kill_daemon
sed -i 1d /etc/pgstead/node.toml
start_daemon elsewhere
within 60 bash -c "pgstead cluster show app --output json | grep -q 'runs on as before: the daemon.s control group /sys/fs/cgroup/node/elsewhere'"
timeout 60 pgstead cluster update app --io-write-rate none || fail "limits cannot be taken away where there are none"
within 20 bash -c "! pgstead cluster show app --output json | grep -q io_limits_not_applied"
say "where there is no group to divide, a finding says so"

kill_daemon
start_daemon
within 60 pgstead psql app -- -At -c "SELECT 1"
timeout 60 pgstead cluster delete app --yes || fail "the cluster is not deleted"
kill_daemon
start_daemon
within 30 bash -c "! ls -d $unit/pgstead-*"
say "nothing is left of a member that is gone"
kill_group "$unit"
