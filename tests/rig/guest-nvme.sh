# In the guest: the kernel's NVMe/TCP with native multipath against both sites.
# env NQN, CLUSTER; EXTRA (more options of connect), QUICK=1 (only connect, verify, kill, disconnect), ROUNDS
set -euo pipefail
. ./guest-lib.sh
RECOMMENDED="--keep-alive-tmo=2 --reconnect-delay=1 --ctrl-loss-tmo=-1"
SMALL_SIZES="512 1k 4k 16k 64k 128k 256k 1m"
LARGE_SIZES="4k 8k 64k 1m"
DISCOVERY=nqn.2014-08.org.nvmexpress.discovery

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

# discovering: a discovery controller is connected. nvme-cli 2.13 lists no such subsystem.
discovering() {
    local c
    for c in /sys/class/nvme/nvme*; do
        if [ "$(cat "$c/subsysnqn" 2>/dev/null) $(cat "$c/state")" = "$DISCOVERY live" ]; then return; fi
    done
    return 1
}

connect() {
    # shellcheck disable=SC2086
    check "connect-all by one site's portal" nvme connect-all -t tcp -a 10.77.1.1 -s 4420 $RECOMMENDED "$@"
    settle 120    # a guest under load is slow to make its devices
    wait_for 60 all_well || { nvme_paths "$NQN"; die "not two live paths with two ANA states"; }
    result "one multipath device, two paths, two ANA states" ok
    disk=$(nvme_disk "$NQN")
    small=$(disk_of "$disk" 1) large=$(disk_of "$disk" 2)
    [ -b "$small" ] && [ -b "$large" ] || die "no block device of both volumes"
}

# nvme_says WORDS...: nvme-cli must succeed, say nothing on its error output and nothing of an error
# on the other, whose text stays in /tmp/tool.out.
nvme_says() {
    nvme "$@" >/tmp/tool.out 2>/tmp/tool.err || { cat /tmp/tool.out /tmp/tool.err; die "nvme $*"; }
    sed -i -E '/^(read|write|compare): Success$/d' /tmp/tool.err
    [ ! -s /tmp/tool.err ] || { cat /tmp/tool.err; die "nvme $* complains"; }
    # A field that is reserved must be zero.
    ! grep -iE 'invalid|unknown|error:|nvme status|: *(0x)?0*[1-9a-f][0-9a-f]*\s+reserved' /tmp/tool.out || die "nvme $* complains"
}

# pages CONTROLLER: every identify structure, log page, feature and property that the controller has,
# on the path that serves and on the one that does not.
pages() {
    local c=$1 command page
    for command in "id-ctrl -H $c" "id-ctrl -v $c" "list-ns $c" "list-ns -a $c" "id-ns -H $c -n 1" "id-ns -H $c -n 2" \
        "id-ns -v $c -n 1" "ns-descs $c -n 1" "cmdset-ind-id-ns $c -n 1" "nvm-id-ctrl $c" "nvm-id-ns $c -n 1" "id-iocs $c" \
        "list-ctrl $c" "list-ctrl -n 1 $c" "supported-log-pages $c" "supported-log-pages -v $c" "error-log $c" "smart-log $c" \
        "smart-log -H $c" "fw-log $c" "changed-ns-list-log $c" "effects-log -c 0 $c" "effects-log -H -c 0 $c" "ana-log $c" \
        "ana-log -g $c" "fid-support-effects-log $c" "fid-support-effects-log -H $c" "resv-notif-log $c" \
        "get-feature -f 0x16 $c" "get-feature -f 0x81 --cdw11=1 --data-len=16 $c" "get-feature -f 0x82 -n 1 $c"; do
        # shellcheck disable=SC2086
        nvme_says $command
    done
    for page in 0x01 0x02 0x04 0x05 0x07 0x08 0x09 0x0a 0x0b 0x0f; do
        nvme_says get-feature -H -f $page "$c"
    done
    for page in 0x00:1024 0x01:64 0x02:512 0x03:512 0x04:4096 0x05:4096 0x0c:4096 0x12:1024 0x80:64; do
        nvme_says get-log -i "${page%:*}" -l "${page#*:}" "$c"
    done
    for page in 0x00 0x08 0x14 0x1c; do nvme_says get-property -H --offset=$page "$c"; done
    for command in "id-ctrl" "list-ns" "smart-log" "fw-log" "error-log" "ana-log" "effects-log -c 0"; do
        # shellcheck disable=SC2086
        nvme_says $command -o json "$c"
        jq -e . /tmp/tool.out >/dev/null || { cat /tmp/tool.out; die "nvme $command -o json is no JSON"; }
    done
}

tools() {
    local c command number
    for c in $(controllers); do pages "/dev/$c"; done
    result "nvme-cli: every page, log, feature, on both paths" ok
    for command in "list -v" "list -o json" "list-subsys -v" "list-subsys -o json" "id-ns -H $small" "ns-descs $small" "id-ns -H $large" \
        "get-ns-id $small" "get-feature -f 0x83 -n 1 $small" "resv-report -e $small" "resv-report -e $small -o json" \
        "flush $small" "verify $small -s 0 -c 15" "write-zeroes $small -s 64 -c 7" "write-zeroes $small -s 64 -c 7 --deac" \
        "dsm $small -d -s 128 -b 8" "ns-rescan /dev/$(controllers | head -1)"; do
        # shellcheck disable=SC2086
        nvme_says $command
    done
    number=$(date +%s%N)
    printf '%-4096s' "$number" >/tmp/block
    nvme_says write "$small" -s 64 -c 7 -z 4096 -d /tmp/block
    nvme_says compare "$small" -s 64 -c 7 -z 4096 -d /tmp/block
    nvme_says read "$small" -s 64 -c 7 -z 4096 -d /tmp/read
    cmp /tmp/block /tmp/read || die "nvme read gives something else than nvme write wrote"
    printf '%-4096s' other >/tmp/block
    ! nvme compare "$small" -s 64 -c 7 -z 4096 -d /tmp/block >/tmp/tool.out 2>&1 || die "nvme compare finds different blocks alike"
    result "nvme-cli: commands" ok
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
    local what=$1 began=$SECONDS
    shift
    write_jobs small "$small" 45 $SMALL_SIZES
    write_jobs large /mnt/file 45 $LARGE_SIZES
    fio_start small
    fio_start large
    probe_start "$small" 42
    under_load 13
    # What comes after the load would be felt by nobody.
    [ $((SECONDS - began)) -le 25 ] || die "$what: fio took $((SECONDS - began)) s to begin"
    "$@"
    fio_end probe "$what, a 4 KiB write waits"
    fio_end small "$what, raw 512 B to 1 MiB"
    fio_end large "$what, in ext4"
    kept "$small" "$what"
}

kill_owner() {
    [ "$(cluster owner small)" = a ] || die "a does not own the volume"
    cluster kill a
}
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
# A discovery connection that stays must outlive its keep-alive, and end when it is told to.
nvme discover -t tcp -a 10.77.1.1 -s 4420 --persistent --keep-alive-tmo=2 >/tmp/discovered
wait_for 10 discovering || { nvme list-subsys; die "no persistent discovery controller"; }
sleep 5    # what is awaited is that nothing happens for longer than the keep-alive
discovering || { nvme list-subsys; die "the persistent discovery controller did not last"; }
check "persistent discovery outlives its keep-alive" nvme disconnect -n "$DISCOVERY"
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
