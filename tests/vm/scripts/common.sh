# Sourced by the scripts that run inside the machine.
set -euo pipefail
export PATH=/payload:$PATH:$(echo /usr/lib/postgresql/*/bin)
as=$(basename "$0" .sh)

say() { echo "$as: $*"; }
fail() {
    say "$*"
    for log in /var/log/pgstead*.log; do
        echo "==> $log"
        # Nodes that wait for each other on a machine this slow say so many times a second.
        grep -v openraft "$log" | tail -n 40
    done
    tail -n 10 /var/lib/pgstead*/run/*/postgres.log 2>/dev/null
    exit 1
}
# It makes volume groups of whole disks.
mountpoint -q /payload && [ "$(cat /proc/sys/kernel/hostname)" = vm ] ||
    { say "this is for the virtual machine of make vm, and nowhere else"; exit 1; }

# At most $1 seconds, until the command that follows succeeds.
within() {
    local end=$((SECONDS + $1)) left
    shift
    while left=$((end - SECONDS)); [ "$left" -gt 0 ]; do
        if timeout "$left" "$@" >/tmp/said 2>&1; then return 0; fi
        sleep 0.2
    done
    cat /tmp/said
    fail "in vain: $*"
}
# Ends every process of a control group, and waits until they are gone.
kill_group() {
    echo 1 >"$1/cgroup.kill"
    within 20 grep -qx 'populated 0' "$1/cgroup.events"
}
mkdir -p /etc/pgstead /var/log
