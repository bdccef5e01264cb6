#!/usr/bin/env bash
# Captures a Linux host's sessions and has tshark dissect them: nothing may be malformed, unknown
# or of a wrong digest.
#   wire.sh [suite]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command -v tshark >/dev/null || { say "SKIPPED: no tshark (Debian: tshark)"; exit 0; }
export CHAP=1
. "$here/with-cluster.sh"
capture=$RUN/sessions.pcapng
ip netns exec "$NS" dumpcap -q -i bra -i brb -f "port 4420 or port 3260" -w "$capture" 2>"$RUN/capture.log" &
capturer=$!
await 20 "the capture runs" grep -q 'Capturing on' "$RUN/capture.log"
RIG_SUITE=${1:-bookworm} "$VOUTE_RIG/guest-run" --net "ns:$NS" --name $GUEST_NAME --timeout 300 \
    --env NQN="$("$here/cluster.sh" nqn)" --env IQN="$("$here/cluster.sh" iqn)" --env CLUSTER=false \
    --env CHAP_USER="$(guest_iqn $GUEST_NAME)" --env CHAP_SECRET=$CHAP_SECRET "$here/guest-wire.sh" "$here/guest-lib.sh"
kill -TERM $capturer
wait $capturer || true

dissect() { tshark -r "$capture" -o nvme-tcp.check_hdgst:TRUE -o nvme-tcp.check_ddgst:TRUE "$@" 2>/dev/null; }
count() { dissect -Y "$1" -T fields -e frame.number | wc -l; }
for kind in nvme-tcp iscsi; do
    [ "$(count "$kind")" -gt 100 ] || fail "tshark found no $kind in the capture"
done
bad=$(count '_ws.malformed || _ws.expert.severity == "Error"')
[ "$bad" = 0 ] || { dissect -Y '_ws.malformed || _ws.expert.severity == "Error"' | head -20; fail "$bad frames are malformed or wrong"; }
dissect -Y 'nvme-tcp || iscsi' -V >"$RUN/dissected"
! grep -nE 'Unknown|Malformed|\[incorrect|Bad digest|should be 0x' "$RUN/dissected" | head -20 | grep . || fail "tshark does not understand these fields"
for kind in $(seq 0 9); do
    say "NVMe/TCP PDU type $kind: $(count "nvme-tcp.type == $kind") frames"
done
say "iSCSI opcodes: $(dissect -Y iscsi -T fields -e iscsi.opcode | tr ',' '\n' | sort | uniq -c | awk '{printf "%s:%s ", $2, $1}')"
say "wire: ok, $(count nvme-tcp) frames of NVMe/TCP, $(count iscsi) of iSCSI"
