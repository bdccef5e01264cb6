# In the guest: the kernel's NVMe/TCP with native multipath against both sites.
# env NQN, CLUSTER; EXTRA (more options of connect), QUICK=1 (only connect, verify, kill, disconnect), ROUNDS
set -euo pipefail
. ./guest-lib.sh
RECOMMENDED="--keep-alive-tmo=2 --reconnect-delay=1 --ctrl-loss-tmo=-1"
SMALL_SIZES="512 1k 4k 16k 64k 128k 256k 1m"
LARGE_SIZES="4k 8k 64k 1m"

live_paths() { [ "$(nvme_paths "$NQN" | grep -c ' live ')" = "$1" ]; }
# disk_of DISK NSID: that namespace of DISK's subsystem; the kernel's own numbers follow no order.
disk_of() {
    local block
    for block in /sys/block/"$(basename "${1%n*}")"n*; do
        if [ "$(cat "$block/nsid")" = "$2" ]; then echo "/dev/$(basename "$block")"; fi
    done
}
# ana NUMBER: the states of a device's paths, in words, sorted.
ana() { nvme_paths "$NQN" | grep -o "nvme[0-9]*c[0-9]*n$1:[a-z-]*" | cut -d: -f2 | sort | tr '\n' ' '; }
two_states() { [ "$(ana "$1")" = "inaccessible optimized " ]; }
all_well() { live_paths 2 && two_states 1 && two_states 2; }
size_is() { [ "$(blockdev --getsize64 "$1")" = "$2" ]; }
controllers() { nvme_paths "$NQN" | cut -d' ' -f1; }

connect() {
    # shellcheck disable=SC2086
    check "connect-all by one site's portal" nvme connect-all -t tcp -a 10.77.1.1 -s 4420 $RECOMMENDED "$@"
    settle
    wait_for 30 all_well || { nvme_paths "$NQN"; die "not two live paths with two ANA states"; }
    result "one multipath device, two paths, two ANA states" ok
    disk=$(nvme_disk "$NQN")
    small=$(disk_of "$disk" 1) large=$(disk_of "$disk" 2)
    [ -b "$small" ] && [ -b "$large" ] || die "no block device of both volumes"
}

tools() {
    local c command
    c=/dev/$(controllers | head -1)
    for command in "id-ctrl -H $c" "list-ns $c" "list-ns -a $c" "id-ns -H $small" "ns-descs $small" \
        "id-ns -H $large" "cmdset-ind-id-ns $c -n 1" "nvm-id-ctrl $c" "nvm-id-ns $c -n 1" "id-iocs $c" \
        "supported-log-pages $c" "error-log $c" "smart-log $c" "fw-log $c" "changed-ns-list-log $c" \
        "effects-log -c 0 $c" "ana-log $c" "get-feature -H -f 0x01 $c" "get-feature -H -f 0x02 $c" \
        "get-feature -H -f 0x04 $c" "get-feature -H -f 0x05 $c" "get-feature -H -f 0x07 $c" \
        "get-feature -H -f 0x08 $c" "get-feature -H -f 0x09 $c" "get-feature -H -f 0x0a $c" "get-feature -H -f 0x0b $c" \
        "get-feature -H -f 0x0f $c" "get-feature -f 0x16 $c" "get-feature -f 0x81 --cdw11=1 --data-len=16 $c" \
        "get-feature -f 0x82 -n 1 $c" "get-feature -f 0x83 -n 1 $c" "list-ctrl $c" "list-ctrl -n 1 $c" \
        "fid-support-effects-log $c" "resv-notif-log $c" "resv-report -e $small" "flush $small" "verify $small -s 0 -c 15" \
        "write-zeroes $small -s 64 -c 7" "write-zeroes $small -s 64 -c 7 --deac" "dsm $small -d -s 128 -b 8"; do
        # shellcheck disable=SC2086
        nvme $command >/tmp/tool.out 2>&1 || { cat /tmp/tool.out; die "nvme $command"; }
        grep -iE 'invalid|unknown|error:|nvme status' /tmp/tool.out && die "nvme $command complains"
    done
    result "nvme-cli: identify, logs, features, commands" ok
}

# One host's reservation from registration to its end; conflicts between hosts are tested without a guest.
reservations() {
    local report
    check "resv-register" nvme resv-register "$small" --nrkey=0xabc --rrega=0 --cptpl=3
    check "resv-acquire" nvme resv-acquire "$small" --crkey=0xabc --rtype=1 --racqa=0
    report=$(nvme resv-report -e "$small" -o json)
    [ "$(jq -r '.rtype, .regctl, .ptpls' <<<"$report" | tr '\n' ' ')" = "1 1 1 " ] || { echo "$report"; die "resv-report"; }
    check "its own writes pass" dd if=/dev/zero of="$small" bs=4k count=1 seek=2048 oflag=direct status=none
    check "resv-release" nvme resv-release "$small" --crkey=0xabc --rtype=1 --rrela=0
    check "resv-register: unregister" nvme resv-register "$small" --crkey=0xabc --rrega=1
    [ "$(nvme resv-report -e "$small" -o json | jq -r .regctl)" = 0 ] || die "a registration stays"
    result "reservation made, reported and given back" ok
}

# The guest stops for longer than its keep-alive; its time stops too, so that it notices when the
# target has long closed.
keep_alive_expires() {
    host "$RIG/guest pause $RIG_GUEST; sleep 9; $RIG/guest cont $RIG_GUEST"
    wait_for 60 all_well || { nvme_paths "$NQN"; die "the paths did not come back after the keep-alive ran out"; }
}

no_controllers() { [ -z "$(nvme_paths "$NQN")" ]; }

# Requests under way fail, as they must; the kernel and the target must be done with it at once.
disconnect_under_load() {
    local pid
    fio --name=leaving --filename="$small" --ioengine=libaio --direct=1 --rw=randwrite --bs=16k --iodepth=16 \
        --offset=136m --size=8m --time_based --runtime=60 >/dev/null 2>&1 &
    pid=$!
    sleep 3    # under load is what we want to be
    check "disconnect under load" nvme disconnect -n "$NQN"
    wait_for 30 no_controllers || die "controllers stay after a disconnect under load"
    wait_for 30 gone "$pid" || hung "fio does not end after a disconnect"
    wait "$pid" || true
    connect
    small=$(disk_of "$(nvme_disk "$NQN")" 1)
    kept "$small" "after a disconnect under load"
    check "disconnect" nvme disconnect -n "$NQN"
    wait_for 30 no_controllers || die "controllers stay after disconnect"
}

# burst WHAT ACTION...: fio on the raw volume and in a file system while the action happens.
burst() {
    local what=$1
    shift
    write_jobs small "$small" 25 $SMALL_SIZES
    write_jobs large /mnt/file 25 $LARGE_SIZES
    fio_start small
    fio_start large
    probe_start "$small" 22
    under_load 13
    "$@"
    fio_end probe "$what, a 4 KiB write waits"
    fio_end small "$what, raw 512 B to 1 MiB"
    fio_end large "$what, in ext4"
    kept "$small" "$what"
}

kill_owner() { cluster kill a; }
come_back() {
    cluster start a
    cluster healthy
    wait_for 60 all_well || { nvme_paths "$NQN"; die "the path did not come back"; }
    result "node back, legs resynced, two live paths" ok
}
home() { move a; cluster healthy; wait_for 30 all_well || die "no two states at home"; }
reset_both() { local c; for c in $(controllers); do nvme reset "/dev/$c"; sleep 3; done; }
freeze_other_path() {
    host "$RIG/guest link $RIG_GUEST b off"
    wait_for 40 live_paths 1 || die "the silent path was not noticed"
    host "$RIG/guest link $RIG_GUEST b on"
    wait_for 60 live_paths 2 || die "the silent path did not come back"
}

modprobe nvme-tcp
step "discover"
for site in 10.77.1.1 10.77.2.1; do
    nvme discover -t tcp -a $site -s 4420 >/tmp/discovered
    for portal in 10.77.1.1 10.77.2.1; do grep -q "traddr: *$portal" /tmp/discovered || die "$site does not list $portal"; done
done
result "discovery at either site lists both" ok
step "connect"
connect ${EXTRA:-}
nvme list
nvme list-subsys
step "tools"
tools
step "reservations"
reservations
step "verify"
write_jobs plain "$small" 10 $SMALL_SIZES
fio_start plain
fio_end plain "no fault, raw 512 B to 1 MiB"
pledge "$small"
check "mkfs.ext4" mkfs.ext4 -q -F "$large"
mount "$large" /mnt
step "the owner is killed"
burst "owner of the volume killed" kill_owner
step "it comes back"
come_back
for round in $(seq 1 "${ROUNDS:-0}"); do
    step "round $round: the owner freezes, then is killed"
    home
    burst "round $round, owner frozen" cluster freeze a
    cluster thaw a
    cluster healthy
    wait_for 60 all_well || { nvme_paths "$NQN"; die "the path did not come back"; }
    home
    burst "round $round, owner killed" kill_owner
    come_back
done
[ -n "${QUICK:-}" ] || {
    step "planned move to a"
    burst "planned move to the other site" move a
    wait_for 30 all_well || die "no two states after the move"
    step "growth"
    cluster do volume resize small --size 320MiB
    cluster do volume resize large --size 384MiB
    wait_for 20 size_is "$small" $((320 << 20)) || die "the host does not see the small volume's growth"
    wait_for 20 size_is "$large" $((384 << 20)) || die "the host does not see the large volume's growth"
    check "growth seen without a rescan, ext4 grown mounted" resize2fs "$large"
    step "the owner of everything is killed"
    home
    burst "owner of raw and ext4 killed" kill_owner
    come_back
    step "the owner freezes, another takes over, it goes on"
    home
    burst "owner frozen" cluster freeze a
    cluster thaw a
    cluster healthy
    wait_for 60 all_well || { nvme_paths "$NQN"; die "the path did not come back"; }
    kept "$small" "frozen owner goes on"
    step "controllers are reset"
    burst "both controllers reset" reset_both
    wait_for 30 all_well || die "no two states after the reset"
    step "the keep-alive runs out"
    home
    burst "guest stopped beyond its keep-alive" keep_alive_expires
    step "the other path goes silent"
    home
    burst "the other site's path silent and back" freeze_other_path
    wait_for 30 all_well || die "no two states after the silence"
    nvme ana-log "/dev/$(controllers | head -1)" | head -5
}
step "disconnect"
umount /mnt
check "fsck.ext4" fsck.ext4 -fn "$large"
quiet_kernel
check "disconnect" nvme disconnect -n "$NQN"
[ -z "$(nvme_paths "$NQN")" ] || die "controllers stay after disconnect"
[ -n "${QUICK:-}" ] || {
    step "disconnect under load"
    connect ${EXTRA:-}
    small=$(disk_of "$(nvme_disk "$NQN")" 1)
    disconnect_under_load
}
echo "guest-nvme: ok"
