#!/bin/bash
# Inside the machine: three nodes, each with a network namespace, a disk and a pool of its own, and a cluster of three on them with a
# client that never stops writing. Nodes die, a fork is made, volumes grow, a pool is filled to the brim, a disk forgets what was
# written to it, and at last the whole machine loses its power. No row that was acknowledged may be missing at any time.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/tmp/admin.json
export DM_DISABLE_UDEV=1
disks=([1]=/dev/vdc [2]=/dev/vdd [3]=/dev/mapper/flaky)
acked=/tmp/acked

ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
for n in 1 2 3; do
    ip netns add "n$n"
    ip link add "v$n" type veth peer name eth0 netns "n$n"
    ip link set "v$n" master br0 up
    ip -n "n$n" addr add "10.77.0.$n/24" dev eth0
    ip -n "n$n" link set eth0 up
    ip -n "n$n" link set lo up
    mkdir -p "/sys/fs/cgroup/n$n"
done
# The third disk has something before it that can forget writes. LVM is to see that, and not the disk behind it.
sectors=$(blockdev --getsz /dev/vde)
sed -i 's|^devices {|devices {\n    global_filter = [ "r\|^/dev/vde\|" ]|' /etc/lvm/lvmlocal.conf
dmsetup create flaky --table "0 $sectors linear /dev/vde 0"
forget_writes() {
    dmsetup suspend --noflush --nolockfs flaky
    dmsetup load flaky --table "0 $sectors flakey /dev/vde 0 0 3600 1 drop_writes"
    dmsetup resume flaky
}
keep_writes() {
    dmsetup suspend --noflush --nolockfs flaky
    dmsetup load flaky --table "0 $sectors linear /dev/vde 0"
    dmsetup resume flaky
}

in_node() { nsenter --net="/run/netns/n$1" "${@:2}"; }
start_node() {
    in_node "$1" bash -c "echo \$\$ >/sys/fs/cgroup/n$1/cgroup.procs; exec pgstead node run --config /etc/pgstead/n$1.toml" \
        >>"/var/log/pgstead-$1.log" 2>&1 &
}
kill_node() { kill_group "/sys/fs/cgroup/n$1"; }
# What a host that begins anew does not have.
forget_mounts() {
    for place in /var/lib/pgstead-"$1"/volumes/nvme/*/; do
        ! mountpoint -q "$place" || umount "$place"
    done
    vgchange -q -an "nvme$1"
}
member() { pgstead member list --cluster app | tr -s ' ' | grep " $1 " | head -n 1; }
leader_node() { member leader | cut -d' ' -f3 | tr -d n; }
all_well() { pgstead cluster list | tr -s ' ' | grep -q "^app healthy .* 3/3 "; }
leads_not() { [ -n "$(leader_node)" ] && [ "$(leader_node)" != "$1" ] && pgstead psql app -- -At -c "INSERT INTO rows DEFAULT VALUES" -q; }
export -f member leader_node all_well leads_not

# Each line of it is a row that was acknowledged.
write_rows() {
    while [ ! -e /tmp/stop ]; do
        yes 'INSERT INTO rows DEFAULT VALUES RETURNING id, pg_sleep(0.05);' |
            pgstead psql app -- -qAt -F ' ' -v ON_ERROR_STOP=1 -f - 2>>/tmp/client || sleep 0.5
    done >>"$acked"
}
goes_on() { local before; before=$(wc -l <"$acked"); within 120 bash -c "[ \$(wc -l <$acked) -gt $((before + 10)) ]"; }
nothing_is_lost() {
    # Those that were acknowledged before it is looked.
    grep -oE '^[0-9]+' "$acked" | sort -u >/tmp/told
    within 120 bash -c "pgstead psql app -- -qAt -c 'SELECT id FROM rows' | sort -u >/tmp/there"
    local lost
    lost=$(comm -23 /tmp/told /tmp/there | wc -l)
    [ "$lost" = 0 ] || fail "$lost of $(wc -l </tmp/told) rows are lost: $(comm -23 /tmp/told /tmp/there | head -n 5 | tr '\n' ' ')"
    say "$1: $(wc -l </tmp/told) rows acknowledged, 0 lost"
}

for n in 1 2 3; do
    pgstead pool create "nvme$n" --device "${disks[$n]}" --yes >/dev/null
    cat >"/etc/pgstead/n$n.toml" <<END
name = "n$n"
host = "10.77.0.$n"
zone = "z$n"
data_dir = "/var/lib/pgstead-$n"
run_as = "postgres"
# Three hosts in one machine that is emulated.
[timing]
heartbeat_ms = 500
suspicion_ms = 5000
lease_ms = 20000
[[pool]]
name = "nvme"
driver = "lvm"
volume_group = "nvme$n"
thin_pool = "pool"
volume_size_gib = 1
END
done
in_node 1 pgstead init --config /etc/pgstead/n1.toml
# Of whichever node is there.
sed 's|"https://10.77.0.1:7480"|"https://10.77.0.1:7480", "https://10.77.0.2:7480", "https://10.77.0.3:7480"|' \
    /var/lib/pgstead-1/secrets/admin.json >"$PGSTEAD_PROFILE"
chmod 600 "$PGSTEAD_PROFILE"
start_node 1
within 60 pgstead status
for n in 2 3; do
    pgstead token create --output json | grep -oE '"token": *"[^"]*"' | cut -d'"' -f4 >/tmp/token
    within 60 nsenter --net="/run/netns/n$n" bash -c "pgstead node join --config /etc/pgstead/n$n.toml --token - </tmp/token"
    start_node "$n"
done
within 120 bash -c '[ "$(pgstead node list | grep -c " reachable")" = 3 ]'
say "three nodes, each with a pool of its own"
timeout 300 pgstead cluster create app --set max_wal_size=128MB >/dev/null || fail "the cluster does not come to be"
within 60 pgstead psql app -- -q -c "CREATE TABLE rows (id bigserial PRIMARY KEY)"
write_rows &
goes_on

first=$(leader_node)
# What it writes last no standby has: it is rewound when it comes back, and what is rewound is kept.
others=$(echo 1 2 3 | tr ' ' '\n' | grep -v "$first")
for n in $others; do ip link set "v$n" down; done
! timeout 8 pgstead psql app -- -q -c "INSERT INTO rows DEFAULT VALUES" 2>/dev/null || fail "a row was acknowledged by one alone"
kill_node "$first"
# The kernel would still send what was waiting.
ip link set "v$first" down
for n in $others; do ip link set "v$n" up; done
forget_mounts "$first"
within 120 bash -c "leads_not $first"
goes_on
ip link set "v$first" up
start_node "$first"
within 180 bash -c all_well
within 20 bash -c "pgstead snapshot list --cluster app | grep -q ' rewind '"
nothing_is_lost "the leader's host died and came back, and what it had alone is in a snapshot"

timeout 200 pgstead cluster fork app twin >/dev/null || fail "there is no fork"
has=$(pgstead psql twin -- -qAt -c "SELECT count(*) FROM rows")
[ "$has" -gt 10 ] || fail "the fork has $has rows"
timeout 120 pgstead cluster delete twin --yes >/dev/null || fail "the fork is not deleted"
timeout 120 pgstead cluster update app --volume-size 1400MB >/dev/null || fail "the volumes do not grow"
goes_on
nothing_is_lost "forked, and grown under load"

# As much as another cluster's volume could take, on the leader's pool.
full=$(leader_node)
lvcreate -q -y --type thin -V 3000M -n hog "nvme$full/pool" >/dev/null
room() { lvs --noheadings -o data_percent "nvme$full/pool" | tr -d ' ' | cut -d. -f1; }
dd if=/dev/urandom of=/tmp/block bs=1M count=16 2>/dev/null
at=0
while [ "$(room)" -lt 96 ]; do
    dd if=/tmp/block of="/dev/nvme$full/hog" bs=1M seek=$at oflag=direct conv=notrunc 2>/dev/null || break
    at=$((at + 16))
done
say "the pool of n$full, which leads, is $(room) % full"
within 120 bash -c "leads_not $full"
goes_on
dd if=/dev/zero of="/dev/nvme$full/hog" bs=1M seek=$at oflag=direct 2>/dev/null || true
goes_on
say "it is $(room) % full"
lvremove -q -y "nvme$full/hog" >/dev/null
within 240 bash -c all_well
nothing_is_lost "a pool was full to the brim"

# Its acknowledgements are lies from here on, and so are its own syncs. It may lead again once its pool has had room for a while.
n3_leads() { [ "$(leader_node)" = 3 ] || timeout 60 pgstead cluster switchover app --to "$(member n3 | cut -d' ' -f2)" --overrule; }
export -f n3_leads
within 180 bash -c n3_leads
goes_on
forget_writes
goes_on
kill_node 3
forget_mounts 3 || true
keep_writes
within 120 bash -c "leads_not 3"
start_node 3
within 240 bash -c all_well
goes_on
nothing_is_lost "the leader's disk had forgotten its last writes"

for n in 1 2 3; do echo 1 >"/sys/fs/cgroup/n$n/cgroup.kill"; done
for n in 1 2 3; do
    kill_node "$n"
    forget_mounts "$n"
done
for n in 1 2 3; do start_node "$n"; done
within 240 bash -c all_well
goes_on
nothing_is_lost "the machine began anew"
touch /tmp/stop
for n in 1 2 3; do kill_node "$n"; done
