# Sourced in the guest: the steps that both protocols share.
# env CLUSTER: how to call cluster.sh on the machine outside.
. /rig/lib.sh
mkdir -p /tmp/jobs

# move SITE: whatever is not there already.
move() {
    local volume
    for volume in small large; do
        [ "$(cluster owner $volume)" = "$1" ] || cluster do volume move $volume --to "$1"
    done
}
cluster() { host "$CLUSTER $*"; }
die() { echo "FAILED: $*"; dmesg | tail -40; exit 1; }
result() { printf 'RESULT %-52s %s\n' "$1" "$2"; }

# check WHAT COMMAND...: which must succeed.
check() {
    local what=$1
    shift
    "$@" >/tmp/check.out 2>&1 || { cat /tmp/check.out; die "$what ($*)"; }
    result "$what" ok
}

# write_jobs FILE-NAME DEVICE SECONDS BYTES...: writes at random places and reads each back, one
# job a block size, each in its own 8 MiB. Overlaps are serialised: large blocks fill that area soon, and a
# second write of a block beside the first that is still under way may be mixed with it by the host itself.
write_jobs() {
    local name=$1 device=$2 seconds=$3 bytes at=0
    shift 3
    rm -f /tmp/jobs/begun.*
    {
        printf '[global]\nfilename=%s\nioengine=libaio\ndirect=1\nrw=randwrite\niodepth=4\n' "$device"
        printf 'verify=crc32c\nverify_backlog=32\nverify_fatal=1\nverify_dump=0\nverify_state_save=0\nserialize_overlap=1\ntime_based\nruntime=%s\nsize=8m\n' "$seconds"
        for bytes in "$@"; do
            printf '[%s]\nbs=%s\noffset=%sm\nexec_prerun=touch /tmp/jobs/begun.%s.%s\n' "$bytes" "$bytes" "$at" "$name" "$bytes"
            at=$((at + 8))
        done
    } >"/tmp/jobs/$name"
}

# fio_start NAME: the jobs of that name, in the background.
fio_start() {
    fio --output-format=json --output="/tmp/jobs/$1.json" "/tmp/jobs/$1" >"/tmp/jobs/$1.err" 2>&1 &
    echo $! >"/tmp/jobs/$1.pid"
}

# hung WHAT: where the kernel's tasks wait, then the end.
hung() {
    local task
    dmesg -C
    echo l >/proc/sysrq-trigger
    dmesg | tail -60
    for task in /proc/[0-9]*/task/[0-9]*; do
        grep -qE 'nvme|blk_|srcu|tcp|scsi|dm_' "$task/stack" 2>/dev/null || continue
        echo "-- $(cat "$task/comm") $(grep State "$task/status")"
        cat "$task/stack"
    done
    die "$1"
}
gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.Z' "/proc/$1/status"; }

# fio_end NAME WHAT: it must have seen no error; says what the longest request took.
fio_end() {
    wait_for 150 gone "$(cat "/tmp/jobs/$1.pid")" || hung "$2: fio does not end"
    wait "$(cat "/tmp/jobs/$1.pid")" || { cat "/tmp/jobs/$1.err"; tail -50 "/tmp/jobs/$1.json"; die "$2: fio ended with an error"; }
    jq -e '[.jobs[].error] | all(. == 0)' "/tmp/jobs/$1.json" >/dev/null || die "$2: an error reached fio"
    jq -e '[.jobs[].write.total_ios] | all(. > 0)' "/tmp/jobs/$1.json" >/dev/null || die "$2: a job of fio wrote nothing"
    [ "$1" = probe ] || { result "$2" "$(jq -r '[.jobs[] | .write, .read] | "\(map(.total_ios) | add) requests verified, 0 errors"' "/tmp/jobs/$1.json")"; return; }
    result "$2" "$(jq -r '[.jobs[] | .write, .read] | "\(map(.total_ios) | add) requests at depth 1, longest \((map(.clat_ns.max // 0) | max) / 1e6 | floor) ms"' "/tmp/jobs/$1.json")"
}

# probe_start DEVICE SECONDS: one 4 KiB write at a time, 50 a second: what a stall costs one request.
probe_start() {
    fio --name=probe --filename="$1" --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=1 --rate_iops=50 \
        --exec_prerun="touch /tmp/jobs/begun.probe" --offset=136m --size=8m --time_based --runtime="$2" --output-format=json --output=/tmp/jobs/probe.json &
    echo $! >/tmp/jobs/probe.pid
}

# under_load COUNT: that many jobs of fio have begun; a guest under load takes long to start them.
under_load() {
    wait_for 60 begun "$1" || die "fio does not begin"
    sleep 3    # under load is what we want to be; there is no more to wait for
}
begun() { [ "$(find /tmp/jobs -name 'begun.*' | wc -l)" = "$1" ]; }

# pledge DEVICE: fills 32 MiB at 96 MiB with known bytes; kept DEVICE: they are still there.
pledge_fio() {
    fio --name=pledge --filename="$1" --ioengine=libaio --direct=1 --rw=write --bs=64k --iodepth=4 \
        --offset=96m --size=32m --verify=crc32c "${@:2}"
}
pledge() { check "acknowledged bytes written" pledge_fio "$1" --do_verify=0; }
kept() { check "every acknowledged byte is there: $2" pledge_fio "$1" --verify_only; }

# quiet_kernel: no error of a volume in the kernel's log. A read ahead that a lost path drops is
# reported for the path (nvme1c1n1, sda), and nobody waits for it.
quiet_kernel() {
    ! dmesg | grep -E 'I/O error, dev (nvme[0-9]+n|dm-)|Buffer I/O error on dev (nvme[0-9]+n|dm-)|EXT4-fs error|XFS.*(rror|hutdown)|hung_task|blocked for more' ||
        die "the kernel complains"
    result "kernel's log without an error of a volume" ok
}
