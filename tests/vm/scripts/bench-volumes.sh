#!/bin/bash
# Inside the machine: what volumes cost and save. Each line `bench <what> <value> <unit>` is one measured value; whoever booted the
# machine makes medians and ratios of them. ROUNDS: of each; MEGABYTES: of the larger database; PARTS: of plain, stall, copies,
# replica and room, all unless some are named.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json
export DM_DISABLE_UDEV=1
rounds=${ROUNDS:-5}
larger=${MEGABYTES:-2048}
parts=" ${PARTS:-plain stall copies replica room} "
mkdir -p /sys/fs/cgroup/node

part() { [[ $parts == *" $1 "* ]]; }
told() { echo "bench $*"; }
millis() { echo $(($(date +%s%N) / 1000000)); }
# Milliseconds that the command takes.
taking() {
    local begun
    begun=$(millis)
    "$@" >/tmp/said 2>&1 || { cat /tmp/said; fail "it failed: $*"; }
    echo $(($(millis) - begun))
}
as_postgres() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
sql() { pgstead psql app -- -qAt -c "$1"; }
# Rows of a kilobyte, which nothing compresses away.
rows() { echo "INSERT INTO filling SELECT repeat(md5(n::text || clock_timestamp()), 31) FROM generate_series(1, $1 * 1000) AS n"; }

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
volume_size_gib = 6
END
pgstead init >/dev/null

# --- Plain Postgres, on a thin volume of the pool as the driver makes one and on a disk without LVM. ---
volume() {
    mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1 "$1"
    mkdir -p "$2"
    mount -o noatime,nodev,nosuid,errors=remount-ro,discard,noinit_itable "$1" "$2"
    chown postgres:postgres "$2"
}
lvcreate -q -y --type thin -V 6G -n bare nvme/pool >/dev/null
volume /dev/nvme/bare /mnt/thin
volume /dev/vdd /mnt/plain
ports=([5501]=/mnt/thin [5502]=/mnt/plain)
for port in "${!ports[@]}"; do
    place=${ports[$port]}
    as_postgres initdb -D "$place/data" -N >/dev/null
    printf '%s\n' "port = $port" "unix_socket_directories = '/tmp'" "listen_addresses = ''" "shared_buffers = 128MB" \
        "max_wal_size = 512MB" "autovacuum = off" >>"$place/data/postgresql.conf"
    as_postgres pg_ctl -s -w -D "$place/data" -l "$place/log" start
    as_postgres pgbench -q -i -s 10 -h /tmp -p "$port" postgres >/dev/null 2>&1
    # Once written: the first round of each is not counted.
    as_postgres pgbench -n -c 4 -j 2 -T 10 -h /tmp -p "$port" postgres >/dev/null 2>&1
done
for round in $(part plain && seq "$rounds"); do
    # Each comes first as often as the other.
    order=(5501 5502)
    [ $((round % 2)) = 1 ] || order=(5502 5501)
    for port in "${order[@]}"; do
        psql -q -h /tmp -p "$port" -U postgres -c CHECKPOINT postgres
        tps=$(as_postgres pgbench -n -c 4 -j 2 -T 15 -h /tmp -p "$port" postgres 2>/dev/null | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
        told "tps_$(basename "${ports[$port]}")" "$tps" 1/s
    done
done
as_postgres pg_ctl -s -w -D /mnt/plain/data stop

# --- A cluster, while pgbench writes to it. ---
start_node() { bash -c "echo \$\$ >/sys/fs/cgroup/node/cgroup.procs; exec pgstead node run" >>/var/log/pgstead.log 2>&1 & }
start_node
within 60 pgstead status
timeout 200 pgstead cluster create app --members 1 >/dev/null 2>&1 || fail "the cluster does not come to be"
within 60 pgstead psql app -- -q -c "CREATE TABLE filling (text text)"
# The string looks for the CA where it is used.
cd /tmp
pgstead cluster connection app --ca >ca.pem
uri=$(pgstead --output json cluster connection app | grep -m 1 -oE 'postgresql://[^"]*')
[ -n "$uri" ] || fail "there is no connection string"
pgbench -q -i -s 4 "$uri" >/tmp/said 2>&1 || fail "pgbench: $(cat /tmp/said)"
write() {
    rm -f bench_log*
    pgbench -n -c 4 -j 2 -T 12 -l --log-prefix=bench_log "$uri" >/tmp/said 2>&1 || fail "pgbench: $(cat /tmp/said)"
}
slowest() { cat bench_log* | cut -d' ' -f3 | sort -n | tail -n 1; }
part stall && write
for _ in $(part stall && seq "$rounds"); do
    write
    told stall_without "$(($(slowest) / 1000))" ms
    write &
    writer=$!
    # Its log is written a few hundred transactions at a time: it is under way.
    within 10 bash -c '[ -n "$(cat bench_log* | head -c 1)" ]'
    told snapshot_under_load "$(taking pgstead snapshot create app --keep 1s)" ms
    wait "$writer"
    told stall_with_snapshot "$(($(slowest) / 1000))" ms
done

# --- Snapshots and forks, of little and of much. ---
pgstead --output json cluster connection app >connection.json
port=$(grep -A 40 '"direct"' connection.json | grep -m 1 -oE '"port": *[0-9]+' | tr -dc 0-9)
[ -n "$port" ] || fail "there is no port of Postgres itself in $(cat connection.json)"
# What recovery has to replay is not what is measured here.
checkpoint() { psql -q -U postgres -h /var/lib/pgstead/run/*/ -p "$port" -c CHECKPOINT app; }
copies() {
    local size
    for _ in $(seq "$rounds"); do
        checkpoint
        told "snapshot_$1" "$(taking pgstead snapshot create app --keep 1s)" ms
        told "fork_$1" "$(taking timeout 300 pgstead cluster fork app twin)" ms
        size=$(pgstead psql twin -- -qAt -c "SELECT pg_relation_size('filling')")
        [ "$size" = "$(sql "SELECT pg_relation_size('filling')")" ] || fail "the fork has $size bytes of it"
        timeout 120 pgstead cluster delete twin --yes >/dev/null 2>&1 || fail "the fork is not deleted"
    done
}
sql "$(rows 40)"
if part copies; then
    told database_small "$(sql "SELECT (sum(pg_database_size(oid)) / 1000000)::bigint FROM pg_database")" MB
    copies small
    for _ in $(seq 8); do sql "$(rows $((larger / 8)))"; done
    told database_large "$(sql "SELECT (sum(pg_database_size(oid)) / 1000000)::bigint FROM pg_database")" MB
    copies large
fi

# --- A replica by pg_basebackup, on the same pool, of as much. ---
if part replica; then
    psql -q -h /tmp -p 5501 -U postgres -c "CREATE TABLE filling (text text)" postgres
    for _ in $(seq 8); do psql -q -h /tmp -p 5501 -U postgres -c "$(rows $((larger / 8)))" postgres; done
    psql -q -h /tmp -p 5501 -U postgres -c CHECKPOINT postgres
    replica() {
        lvcreate -q -y --type thin -V 6G -n replica nvme/pool >/dev/null
        volume /dev/nvme/replica /mnt/replica
        as_postgres pg_basebackup -h /tmp -p 5501 -D /mnt/replica/data -R -c fast -X stream
        printf '%s\n' "port = 5503" >>/mnt/replica/data/postgresql.conf
        as_postgres pg_ctl -s -w -D /mnt/replica/data -l /mnt/replica/log start
        [ "$(psql -qAt -h /tmp -p 5503 -U postgres -c "SELECT pg_is_in_recovery()" postgres)" = t ]
    }
    for _ in $(seq "$rounds"); do
        told basebackup_large "$(taking replica)" ms
        as_postgres pg_ctl -s -w -m fast -D /mnt/replica/data stop
        umount /mnt/replica
        lvremove -q -y nvme/replica >/dev/null
    done
fi
as_postgres pg_ctl -s -w -D /mnt/thin/data stop

# --- Room: from the command to what Postgres' user sees. ---
export data=$(ls -d /var/lib/pgstead/volumes/nvme/*/data)
larger_than() { [ "$(df --output=size -BM "$data" | tail -n 1 | tr -dc 0-9)" -gt "$1" ]; }
grow() {
    pgstead cluster update app --volume-size "${1}MB" >/dev/null 2>&1 &
    until larger_than "$2"; do sleep 0.02; done
}
for round in $(part room && seq "$rounds"); do
    has=$(df --output=size -BM "$data" | tail -n 1 | tr -dc 0-9)
    told extend "$(taking grow $((6600 + round * 300)) "$has")" ms
done
echo 1 >/sys/fs/cgroup/node/cgroup.kill
