#!/bin/bash
# Inside the machine: a node with a pool of LVM and a cluster of one member on it. The pool is damaged in the ways of docs/operating/repair.md,
# and mended by the commands there. Every row that was acknowledged is there afterwards.
set -euo pipefail
. /payload/common.sh
export PGSTEAD_PROFILE=/var/lib/pgstead/secrets/admin.json
export DM_DISABLE_UDEV=1
processes=/sys/fs/cgroup/node
export backups=/var/lib/pgstead/pool-backups/nvme

# What systemctl does on a host that has it.
start_node() {
    mkdir -p "$processes"
    bash -c "echo \$\$ >$processes/cgroup.procs; exec pgstead node run" >>/var/log/pgstead.log 2>&1 &
    daemon=$!
}
# Postgres goes on.
restart_daemon() {
    kill "$daemon"
    wait "$daemon" || true
    start_node
}
stop_node() { kill_group "$processes"; }
stop_pool() {
    stop_node
    for place in /var/lib/pgstead/volumes/nvme/*/; do
        ! mountpoint -q "$place" || umount "$place"
    done
    vgchange -q -an nvme
}
newest() { ls "$backups" | sed -n "s|^[0-9]|$backups/&|p" | tail -n 1; }
sql() { pgstead psql app -- -qAt -c "$1"; }

# Stops the pool, and writes what $1 has over $3 blocks of its metadata from block $2 on. LVM lets nobody write there; the disk does.
damage() {
    local disk first at=$2
    read -r _ _ _ disk first <<<"$(dmsetup table nvme-pool_tmeta)"
    [ "$disk" = "$(cat /sys/block/vdc/dev)" ] || fail "the pool's metadata is on $disk"
    stop_pool
    # Of the superblock: where the tree of what blocks are in use begins, which can be made anew from what the volumes have.
    if [ "$at" = space-map ]; then
        at=$(dd if=/dev/vdc bs=4096 skip=$((first / 8)) count=1 iflag=direct 2>/dev/null | od -An -t u8 -j 80 -N 8 | tr -d ' ')
    fi
    dd if="$1" of=/dev/vdc bs=4096 count="$3" seek=$((first / 8 + at)) conv=notrunc oflag=direct 2>/dev/null
}

rows=0
# Each call acknowledges a thousand more.
more_rows() {
    within 120 pgstead psql app -- -qAt -c "SELECT 1"
    sql "INSERT INTO t SELECT generate_series($((rows + 1)), $((rows + 1000))), repeat(md5(random()::text), 30)" || fail "no row is written"
    rows=$((rows + 1000))
}
# The daemon makes a backup when it starts, if something has changed. What is written after that would be lost with the metadata.
fresh_backup() {
    sync
    local before
    before=$(newest)
    restart_daemon
    changed() { [ "$(newest)" != "$1" ]; }
    export -f newest changed
    within 120 bash -c "changed '$before'"
}
nothing_is_lost() {
    within 180 pgstead psql app -- -qAt -c "SELECT 1"
    local has
    has=$(sql "SELECT count(DISTINCT id) FROM t WHERE length(text) = 960")
    [ "$has" = "$rows" ] || fail "$1: $has of $rows rows are there"
    say "$1: $rows rows acknowledged, 0 lost"
    more_rows
}

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
volume_size_gib = 3
END
pgstead init >/dev/null
start_node
within 60 pgstead status
within 60 test -d "$backups"
timeout 120 pgstead cluster create app --members 1 >/tmp/said 2>&1 || fail "the cluster does not come to be: $(tail -c 500 /tmp/said)"
within 60 pgstead psql app -- -qAt -c "CREATE TABLE t (id int, text text)"
more_rows
fresh_backup
[ "$(stat -c %a "$backups" "$(newest)" "$(newest)/pool.xml" | tr '\n' ' ')" = "700 700 600 " ] || fail "others may read the backups"
within 60 bash -c '! dmsetup status --noflush nvme-pool-tpool | grep -qE "thin-pool [0-9]+ [0-9/]+ [0-9/]+ [0-9]+ "'
say "what the pool knows of itself is backed up"
nothing_is_lost "restarted"

# --- The pool's metadata is damaged, its spare is there. ---
damage /dev/urandom space-map 1
! lvchange -q -ay nvme/pool 2>/tmp/said || fail "the pool is activated though its metadata is damaged"
cat /tmp/said
lvconvert --repair -y nvme/pool
lvchange -ay nvme/pool
lvs -o lv_name,lv_size,data_percent,metadata_percent,lv_health_status,lv_check_needed nvme
start_node
nothing_is_lost "repaired"
lvremove -y nvme/pool_meta0

# --- All of it is gone. ---
fresh_backup
damage /dev/zero 0 1024
! lvconvert --repair -y nvme/pool || lvs nvme
backup=$(newest)
size=$(lvs --noheadings --nosuffix --units b -o lv_metadata_size nvme/pool | tr -d ' ')
lvcreate -y -an -L "${size}b" -n restored nvme
lvchange -ay nvme/restored
thin_restore -i "$backup/pool.xml" -o /dev/nvme/restored
thin_check /dev/nvme/restored
lvchange -an nvme/restored
lvconvert -y --thinpool nvme/pool --poolmetadata nvme/restored
lvchange -ay nvme/pool
lvs --noheadings -o lv_path nvme | grep vol- | while read -r volume; do lvchange -ay "$volume"; e2fsck -f -p "$volume"; done
start_node
nothing_is_lost "restored from the backup"
lvremove -y nvme/restored

# --- The disk's label and LVM's description of the group are gone. ---
fresh_backup
stop_pool
dd if=/dev/zero of=/dev/vdc bs=1M count=1 conv=notrunc oflag=direct 2>/dev/null
! lvs nvme 2>/dev/null || fail "the group is there though its description is gone"
backup=$(newest)
grep -A 3 'pv[0-9]* {' "$backup/group.vg"
uuid=$(sed -n '/physical_volumes {/,/^\t}/ s/^\t\t\tid = "\(.*\)"/\1/p' "$backup/group.vg")
pvcreate -y --uuid "$uuid" --restorefile "$backup/group.vg" /dev/vdc
vgcfgrestore -y --force -f "$backup/group.vg" nvme
vgchange -ay nvme
lvs nvme
start_node
nothing_is_lost "the group is restored from the backup"

# --- Another group has its name. ---
stop_pool
lvm vgcreate -q -y --config 'devices { global_filter = [ "a|^/dev/vdd$|", "r|.*|" ] }' nvme /dev/vdd
start_node
within 60 grep -q "there are 2 volume groups named nvme" /var/log/pgstead.log
stop_node
vgs -o vg_name,vg_uuid,vg_tags,pv_name
other=$(vgs --noheadings -o vg_uuid --select 'pv_name=/dev/vdd' | tr -d ' ')
lvs -o lv_name,lv_tags --select "vg_uuid!=$other" | grep -q "vol-.*pgstead.deployment=" || fail "the tags do not say which is which"
vgrename "$other" nvme-other
start_node
nothing_is_lost "the other group has another name"
vgremove -q -y nvme-other

# --- Its disk is taken out, and put in again. ---
take_out() { echo 1 >"$(readlink -f "/sys/block/$1/device/..")/remove"; }
take_out vdc
within 60 bash -c 'pgstead node show db1 | grep -q "pool_un"'
stop_node
umount -l /var/lib/pgstead/volumes/nvme/*
dmsetup remove --deferred $(dmsetup ls | grep '^nvme-' | cut -f1)
[ -z "$(dmsetup ls | grep '^nvme-')" ] || fail "$(dmsetup ls)"
echo 1 >/sys/bus/pci/rescan
within 20 vgs nvme
vgchange -ay nvme
start_node
nothing_is_lost "the disk is back"

# --- Another disk of the group is lost for good, and with it the pool, which lies on both. ---
vgextend -q nvme /dev/vdd
lvextend -q -l +100%FREE nvme/pool
stop_pool
take_out vdd
pvs
vgreduce --removemissing --force nvme
vgremove -y nvme
left=$(pvs --noheadings -o pv_name | tr -d ' ')
pvremove -y "$left"
pgstead pool create nvme --device "$left" --wipe --yes >/dev/null
start_node
within 60 pgstead status
timeout 120 pgstead cluster delete app --yes >/dev/null || fail "the lost cluster is not deleted"
timeout 120 pgstead cluster create next --members 1 >/tmp/said 2>&1 || fail "there is no other cluster: $(tail -c 500 /tmp/said)"
say "the pool is made anew of what is left"
stop_node
