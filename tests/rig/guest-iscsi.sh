# In the guest: open-iscsi with mutual CHAP, dm-multipath with ALUA, against both sites.
# env IQN, CLUSTER, CHAP_USER, CHAP_SECRET, CHAP_TARGET_SECRET; DIGESTS=1 (header and data digests), QUICK=1
set -euo pipefail
. ./guest-lib.sh
SMALL_SIZES="512 1k 4k 16k 64k 128k 256k 1m"
LARGE_SIZES="4k 8k 64k 1m"
PORTALS="10.77.1.1:3260 10.77.2.1:3260"

cat >multipath.conf <<'C'
defaults {
    find_multipaths no
    user_friendly_names yes
    reservation_key 0xabc1
    polling_interval 1
    max_polling_interval 2
    checker_timeout 5
}
blacklist {
    devnode "^(vd|nvme|nullb|loop)"
}
overrides {
    path_grouping_policy group_by_prio
    prio alua
    path_checker tur
    failback immediate
    no_path_retry queue
    fast_io_fail_tmo 5
    dev_loss_tmo 120
}
C

iscsi_name() { iscsiadm -m node -T "$IQN" -p "$1" "${@:2}"; }
# discover: SendTargets at one site, with the host's proof and the target's.
discover() {
    local pair prefix=discovery.sendtargets.auth
    iscsiadm -m discoverydb -t sendtargets -p 10.77.1.1 -o new >/dev/null
    for pair in authmethod=CHAP username="$CHAP_USER" password="$CHAP_SECRET" username_in="$IQN" \
        password_in="$CHAP_TARGET_SECRET"; do
        iscsiadm -m discoverydb -t sendtargets -p 10.77.1.1 -o update -n "$prefix.${pair%%=*}" -v "${pair#*=}"
    done
    iscsiadm -m discoverydb -t sendtargets -p 10.77.1.1 --discover
}
log_in() {
    local portal pair
    discover >/tmp/discovered || die "SendTargets"
    for portal in $PORTALS; do grep -q "^$portal,.*$IQN" /tmp/discovered || { cat /tmp/discovered; die "SendTargets lists no $portal"; }; done
    result "SendTargets at one site lists both portals" ok
    for portal in $PORTALS; do
        ! iscsi_name "$portal" --login >/tmp/refused 2>&1 || die "a login without CHAP was let in"
        for pair in node.session.auth.authmethod=CHAP node.session.auth.username="$CHAP_USER" \
            node.session.auth.password="$CHAP_SECRET" node.session.auth.username_in="$IQN" \
            node.session.auth.password_in=what-another-says node.session.timeo.replacement_timeout=5 \
            'node.conn[0].timeo.noop_out_interval=2' 'node.conn[0].timeo.noop_out_timeout=2' \
            ${DIGESTS:+'node.conn[0].iscsi.HeaderDigest=CRC32C' 'node.conn[0].iscsi.DataDigest=CRC32C'}; do
            iscsi_name "$portal" -o update -n "${pair%%=*}" -v "${pair#*=}"
        done
        ! iscsi_name "$portal" --login >/tmp/refused 2>&1 || die "a target that did not prove itself was trusted"
        iscsi_name "$portal" -o update -n node.session.auth.password_in -v "$CHAP_TARGET_SECRET"
        check "login with mutual CHAP at $portal${DIGESTS:+, digests}" iscsi_name "$portal" --login
    done
    settle
    wait_for 60 four_ready || { multipath -ll; die "not two paths a volume"; }
}
# A path to the site that does not own the volume is on standby: multipath calls it a ghost.
four_ready() { [ "$(multipath -ll | grep -cE 'active (ready|ghost) running')" = 4 ]; }
# prios: how many paths have which priority, best first: two volumes, two paths each.
prios() { multipathd show paths format "%m %p" | awk '/mpath/ {print $2}' | sort -rn | uniq -c | awk '{printf "%sx%s ", $1, $2}'; }
right_prios() { [ "$(prios)" = "2x50 2x1 " ]; }
# map LUN: the multipath device of that logical unit.
map() { multipath -ll | awk -v lun=":$1 " '/ dm-/ {m=$1} index($0, lun) && /sd/ {print "/dev/mapper/" m; exit}'; }
disks_of() { multipath -ll | awk -v lun=":$1 " 'index($0, lun) {for (i = 1; i <= NF; i++) if ($i ~ /^sd/) print "/dev/" $i}'; }
size_is() { [ "$(blockdev --getsize64 "$1")" = "$2" ]; }

# each DISK COMMAND...: none may complain.
each() {
    local disk=$1 command
    shift
    for command in "$@"; do
        $command "$disk" >/tmp/tool.out 2>&1 || { cat /tmp/tool.out; die "$command $disk"; }
    done
}
serving() { multipathd show paths format "%d %p" | grep -qE "^$(basename "$1") +50"; }
tools() {
    local disk served=0
    for disk in $(disks_of 0) $(disks_of 1); do
        each "$disk" sg_inq "sg_vpd -a" "sg_vpd -p sv" "sg_vpd -p sn" "sg_vpd -p di" "sg_vpd -p bl" "sg_vpd -p bdc" \
            "sg_vpd -p lbpv" "sg_vpd -p ei" "sg_vpd -p tpc" "sg_rtpg -d" sg_luns sg_opcodes "sg_opcodes --mask --opcode=0x4d" "sg_opcodes -t" sg_requests \
            "sg_logs" "sg_logs -a" "sg_logs -L" "sg_logs -t" "sg_logs -p ie" "sg_senddiag -t" "sg_persist -i -c" "sg_persist -i -k" "sg_persist -i -r" "sg_persist -i -s"
        serving "$disk" || continue
        served=$((served + 1))
        each "$disk" sg_readcap "sg_readcap -l" "sg_modes -a" "sg_modes -6 -a" "sg_modes -c 1 -a" sg_turs "sg_get_lba_status -l 0" \
            sg_sync "sg_verify -l 0 -c 8"
    done
    [ $served = 2 ] || die "$served disks serve, 2 should"
    result "sg3-utils: pages, logs, reservations on every path; sizes, modes, sync where served" ok
    sg_rtpg -d "$(disks_of 0 | head -1)"
    sg_vpd -p di "$(disks_of 0 | head -1)"
}

# A cluster manager reserves by every path of a map, those on standby too; one that is not registered
# is kept out on each.
keys() { mpathpersist --in -k "$1" | grep -oE '0x[0-9a-f]+' | grep -c "$2" || true; }
reserved() { mpathpersist --in -r "$1" | grep -q 'Write Exclusive, registrants only'; }
persistent() {
    local map=$1
    check "mpathpersist registers on both paths" mpathpersist --out --register --param-sark=0xabc1 "$map"
    [ "$(keys "$map" 0xabc1)" -ge 1 ] || { mpathpersist --in -k "$map"; die "the key is not there"; }
    each "$(disks_of 0 | head -1)" "sg_persist -i -k"
    [ "$(grep -c 0xabc1 /tmp/tool.out)" = 2 ] || { cat /tmp/tool.out; die "not both paths are registered"; }
    check "mpathpersist reserves" mpathpersist --out --reserve --param-rk=0xabc1 --prout-type=5 "$map"
    reserved "$map" || { mpathpersist --in -r "$map"; die "it is not reserved"; }
    check "the registered host writes" dd if=/dev/zero of="$map" bs=4k count=1 seek=40960 oflag=direct
}
unpersistent() {
    reserved "$1" || { mpathpersist --in -r "$1"; die "the reservation is gone"; }
    check "it still writes" dd if=/dev/zero of="$1" bs=4k count=1 seek=40960 oflag=direct
    check "mpathpersist releases" mpathpersist --out --release --param-rk=0xabc1 --prout-type=5 "$1"
    check "mpathpersist unregisters" mpathpersist --out --register --param-rk=0xabc1 "$1"
    [ "$(keys "$1" 0xabc1)" = 0 ] || { mpathpersist --in -k "$1"; die "the key is still there"; }
}
burst() {
    local what=$1
    shift
    write_jobs small "$small" 30 $SMALL_SIZES
    write_jobs large /mnt/file 30 $LARGE_SIZES
    fio_start small
    fio_start large
    probe_start "$small" 22
    under_load 13
    "$@"
    fio_end probe "$what, a 4 KiB write waits"
    fio_end small "$what, raw 512 B to 1 MiB"
    fio_end large "$what, in $FILE_SYSTEM"
    kept "$small" "$what"
}
kill_owner() { cluster kill a; }
come_back() {
    cluster start a
    cluster healthy
    wait_for 90 four_ready || { multipath -ll; die "the path did not come back"; }
    wait_for 60 right_prios || { multipath -ll; die "priorities are $(prios)"; }
    result "node back, legs resynced, four paths, priorities right" ok
}

step "log in"
iscsi_up
multipath_up multipath.conf
log_in
wait_for 30 right_prios || { multipath -ll; die "priorities are $(prios)"; }
result "dm-multipath: two paths a volume, ALUA priorities" "$(prios)"
multipath -ll
iscsiadm -m session -P 2 | grep -E 'Digest|Burst|InitialR2T|Immediate|MaxRecv|MaxXmit' | sort | uniq -c
small=$(map 0) large=$(map 1)
[ -b "$small" ] && [ -b "$large" ] || die "no multipath device of both volumes"
step "tools"
tools
step "reservations by every path"
persistent "$small"
cluster do volume move small --to b
unpersistent "$small"
cluster do volume move small --to a
wait_for 30 right_prios || { multipath -ll; die "priorities are $(prios)"; }
step "verify"
write_jobs plain "$small" 10 $SMALL_SIZES
fio_start plain
fio_end plain "no fault, raw 512 B to 1 MiB"
pledge "$small"
FILE_SYSTEM=${FILE_SYSTEM:-ext4}
case $FILE_SYSTEM in xfs) force=-f ;; *) force=-F ;; esac
check "mkfs.$FILE_SYSTEM" "mkfs.$FILE_SYSTEM" -q $force "$large"
mount "$large" /mnt
step "the owner is killed"
burst "owner of the volume killed" kill_owner
step "it comes back"
come_back
[ -n "${QUICK:-}" ] || {
    step "planned move to a"
    burst "planned move to the other site" move a
    wait_for 60 right_prios || { multipath -ll; die "priorities are $(prios)"; }
    step "growth"
    cluster do volume resize small --size 320MiB
    cluster do volume resize large --size 384MiB
    iscsiadm -m session --rescan >/dev/null
    settle
    for name in "$small" "$large"; do multipathd resize map "$(basename "$name")" >/dev/null; done
    wait_for 30 size_is "$small" $((320 << 20)) || die "the host does not see the small volume's growth"
    wait_for 30 size_is "$large" $((384 << 20)) || die "the host does not see the large volume's growth"
    case $FILE_SYSTEM in
    ext4) check "growth seen after a rescan, file system grown" resize2fs "$large" ;;
    xfs) check "growth seen after a rescan, file system grown" xfs_growfs /mnt ;;
    esac
    step "the owner of everything is killed"
    burst "owner of raw and $FILE_SYSTEM killed" kill_owner
    come_back
    step "the owner freezes, another takes over, it goes on"
    move a
    cluster healthy
    wait_for 60 right_prios || { multipath -ll; die "priorities are $(prios)"; }
    burst "owner frozen" cluster freeze a
    cluster thaw a
    cluster healthy
    wait_for 90 four_ready || { multipath -ll; die "the path did not come back"; }
    kept "$small" "frozen owner goes on"
}
step "log out"
umount /mnt
case $FILE_SYSTEM in
ext4) check "fsck.ext4" fsck.ext4 -fn "$large" ;;
xfs) check "xfs_repair" xfs_repair -n "$large" ;;
esac
quiet_kernel
multipath -F || true
check "logout" iscsiadm -m node --logout
echo "guest-iscsi: ok"
