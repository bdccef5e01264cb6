# In the guest: short sessions of every kind, for a dissector to judge.
# env NQN, IQN, CHAP_USER, CHAP_SECRET, CHAP_TARGET_SECRET; AUTHENTICATES=1 with CLUSTER, RUN: NVMe
# sessions with DH-HMAC-CHAP too
set -euo pipefail
. ./guest-lib.sh
modprobe nvme-tcp
touch_disk() {
    dd if=/dev/urandom of="$1" bs=4k count=4 oflag=direct status=none
    dd if=/dev/urandom of="$1" bs=1M count=2 oflag=direct status=none
    dd if="$1" of=/dev/null bs=1M count=2 iflag=direct status=none
    dd if="$1" of=/dev/null bs=4k count=4 iflag=direct status=none
}
nvme_session() {
    local disk
    nvme connect-all -t tcp -a 10.77.1.1 -s 4420 "$@"
    settle 120    # a guest under load is slow to make its devices
    wait_for 30 nvme_disk "$NQN"
    disk=$(nvme_disk "$NQN")
    touch_disk "$disk"
    nvme flush "$disk"
    nvme write-zeroes "$disk" -s 0 -c 7
    nvme write-zeroes "$disk" -s 0 -c 7 --deac
    nvme dsm "$disk" -d -s 128 -b 8
    nvme verify "$disk" -s 0 -c 7
    for log in error-log smart-log fw-log ana-log "effects-log -c 0" supported-log-pages changed-ns-list-log; do
        # shellcheck disable=SC2086
        nvme $log "/dev/$(nvme_paths "$NQN" | head -1 | cut -d' ' -f1)" >/dev/null
    done
    sleep 3    # what is awaited is the host's own keep-alive, which it does not announce
    nvme disconnect -n "$NQN"
}
iscsi_session() {
    local pair disk
    iscsiadm -m discovery -t sendtargets -p 10.77.1.1 >/dev/null
    for pair in node.session.auth.authmethod=CHAP node.session.auth.username="$CHAP_USER" \
        node.session.auth.password="$CHAP_SECRET" node.session.auth.username_in="$IQN" \
        node.session.auth.password_in="$CHAP_TARGET_SECRET" 'node.conn[0].timeo.noop_out_interval=1' "$@"; do
        iscsiadm -m node -T "$IQN" -o update -n "${pair%%=*}" -v "${pair#*=}"
    done
    iscsiadm -m node -T "$IQN" -p 10.77.1.1:3260 --login
    settle 120    # a guest under load is slow to make its devices
    wait_for 30 iscsi_disks
    disk=$(iscsi_disks | head -1)
    touch_disk "$disk"
    sg_vpd -a "$disk" >/dev/null
    sg_rtpg -d "$disk" >/dev/null
    sg_opcodes "$disk" >/dev/null
    sg_sync "$disk"
    sg_reset -d "$disk"
    # The reset is told once, to whichever command comes first.
    wait_for 10 sg_turs "$disk"
    sg_unmap --lba=0 --num=8 --force "$disk" || sg_unmap --lba=0 --num=8 --force "$disk"
    sg_write_same --lba=0 --num=8 --in=/dev/zero --xferlen=512 "$disk"
    sleep 3    # for the host's own pings, as above
    iscsiadm -m node -T "$IQN" --logout
}
# prove NUMBER OPTIONS...: a session in which host and target prove keys of that number, with the options.
# The nodes hear of new keys a moment after the command: until then ours are refused.
prove() {
    local disk theirs ours names="theirs$1 ours$1" name
    shift
    theirs=$(nvme gen-dhchap-key -m 1 -n "$(cat /etc/nvme/hostnqn)")
    ours=$(nvme gen-dhchap-key -m 1 -n "$NQN")
    for name in $names; do
        case $name in theirs*) host "printf '%s' '$theirs' >$RUN/$name" ;; *) host "printf '%s' '$ours' >$RUN/$name" ;; esac
        host "$CLUSTER do secret put $name --from-file $RUN/$name" >/dev/null
    done
    cluster do host keys app --secret "${names% *}" --target-secret "${names#* }" >/dev/null
    wait_for 20 nvme connect -t tcp -a 10.77.1.1 -s 4420 -n "$NQN" --dhchap-secret="$theirs" --dhchap-ctrl-secret="$ours" "$@"
    settle 120
    wait_for 30 nvme_disk "$NQN"
    disk=$(nvme_disk "$NQN")
    touch_disk "$disk"
    nvme disconnect -n "$NQN"
    if nvme connect -t tcp -a 10.77.1.1 -s 4420 -n "$NQN" --dhchap-secret="$ours" "$@"; then die "a wrong key was let in"; fi
}
step "NVMe/TCP"
nvme_session
nvme_session --hdr-digest --data-digest
[ -z "${AUTHENTICATES:-}" ] || {
    step "NVMe/TCP, authenticated"
    prove 1
    prove 2 --hdr-digest --data-digest
}
step "iSCSI"
iscsi_up
iscsi_session
iscsi_session 'node.conn[0].iscsi.HeaderDigest=CRC32C' 'node.conn[0].iscsi.DataDigest=CRC32C'
echo "guest-wire: ok"
