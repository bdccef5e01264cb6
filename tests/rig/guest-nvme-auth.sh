# In the guest: the kernel's DH-HMAC-CHAP against both sites, one way and both ways.
# env NQN, CLUSTER, RUN (the run's folder, outside)
set -euo pipefail
. ./guest-lib.sh
me=$(cat /etc/nvme/hostnqn)
live_paths() { [ "$(nvme_paths "$NQN" | grep -c ' live ')" = "$1" ]; }
gone_paths() { [ -z "$(nvme_paths "$NQN")" ]; }
# What udev still reads would fail with the last path, and be told.
leave() { settle || true; nvme disconnect -n "$NQN" >/dev/null; wait_for 20 gone_paths; }
go() { nvme connect -t tcp -a "${SITE:-10.77.1.1}" -s 4420 -n "$NQN" "$@"; }
# keep NAME KEY: as a secret of the cluster.
keep() { host "printf '%s' '$2' >$RUN/$1.key && $CLUSTER do secret put $1 --from-file $RUN/$1.key" >/dev/null; }
refused() {
    local what=$1
    shift
    if go "$@" >/tmp/refused 2>&1; then die "$what: let in"; fi
    gone_paths || die "$what: a controller stays"
    result "$what" "refused: $(tail -1 /tmp/refused | cut -c1-60)"
}
reads() {
    local disk
    disk=$(nvme_disk "$NQN")
    check "$1: data" dd if="$disk" of=/dev/null bs=1M count=4 iflag=direct status=none
}
# The nodes hear of new keys a moment after the command: until then the old ones are right.
let_in() { go "$@" >/dev/null 2>&1 && wait_for 20 live_paths 1; }

modprobe nvme-tcp
step "no key is asked for"
wait_for 20 let_in || die "the host is not let in by its name"
leave
step "keys of every hash, one way and both ways"
for hash in 0 1 2 3; do
    theirs=$(nvme gen-dhchap-key -m $hash -n "$me")
    ours=$(nvme gen-dhchap-key -m $hash -n "$NQN")
    keep "theirs$hash" "$theirs"
    keep "ours$hash" "$ours"
    cluster do host keys app --secret "theirs$hash" --target-secret "ours$hash" >/dev/null
    wait_for 20 let_in --dhchap-secret="$theirs" --dhchap-ctrl-secret="$ours" || { dmesg | tail -20; die "hash $hash, both ways"; }
    reads "hash $hash, both ways"
    leave
    check "hash $hash, one way" go --dhchap-secret="$theirs"
    wait_for 20 live_paths 1
    reads "hash $hash, one way"
    leave
done
dmesg | grep -oE 'authenticated|hash hmac\([a-z0-9]*\) dhgroup [a-z0-9]*|authentication: .*' | sort | uniq -c || true
step "whoever has not the key"
other=$(nvme gen-dhchap-key -m 1 -n "$me")
refused "no key"
refused "a wrong key" --dhchap-secret="$other"
refused "a target with a wrong key" --dhchap-secret="$theirs" --dhchap-ctrl-secret="$other"
step "both paths, under load, while the owner is killed"
# connect-all finds both sites; it takes no --dhchap-ctrl-secret, so that the proofs are one-way here.
nvme connect-all -t tcp -a 10.77.1.1 -s 4420 --dhchap-secret="$theirs" \
    --keep-alive-tmo=2 --reconnect-delay=1 --ctrl-loss-tmo=-1
wait_for 30 live_paths 2 || { nvme_paths "$NQN"; die "not two live paths"; }
disk=$(nvme_disk "$NQN")
write_jobs auth "$disk" 20 4k 64k
fio_start auth
under_load 2
cluster kill a
fio_end auth "owner killed, with keys"
cluster start a
wait_for 60 live_paths 2 || { dmesg | tail -30; nvme_paths "$NQN"; die "the path did not come back with its key"; }
result "path back, authenticated again" ok
step "proven again while connected"
for c in $(nvme_paths "$NQN" | cut -d' ' -f1); do
    echo "$theirs" >"/sys/class/nvme/$c/dhchap_secret"
done
sleep 2    # what is awaited is that nothing happens: a failed proof drops the controller at once
live_paths 2 || { dmesg | tail -30; die "a controller was lost by proving itself again"; }
reads "after the second proof"
quiet_kernel
leave
echo "guest-nvme-auth: ok"
