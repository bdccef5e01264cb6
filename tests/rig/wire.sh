#!/usr/bin/env bash
# Captures a Linux host's sessions, and two that break the protocol, and has tshark dissect them: every
# kind of PDU is there, nothing is malformed, unknown or of a wrong digest.
#   wire.sh [suite]      trixie's sessions authenticate too; Debian 12's kernel cannot
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command -v tshark >/dev/null || { say "SKIPPED: no tshark (Debian: tshark)"; exit 77; }
export CHAP=1
. "$here/with-cluster.sh"
capture=$RUN/sessions.pcapng
ip netns exec "$NS" dumpcap -q -i bra -i brb -i lo -f "port 4420 or port 3260" -w "$capture" 2>"$RUN/capture.log" &
capturer=$!
await 20 "the capture runs" grep -q 'Capturing on' "$RUN/capture.log"
suite=${1:-bookworm}
RIG_SUITE=$suite "$VOUTE_RIG/guest-run" --net "ns:$NS" --name $GUEST_NAME --timeout 480 \
    --env NQN="$("$here/cluster.sh" nqn)" --env IQN="$("$here/cluster.sh" iqn)" \
    --env CLUSTER="RUN=$RUN VOUTE_BIN=$VOUTE_BIN VOUTE_RIG=$VOUTE_RIG VOUTE_RIG_NAMESPACE=$NS $here/cluster.sh" \
    --env RUN="$RUN" --env AUTHENTICATES="$([ "$suite" = bookworm ] || echo 1)" \
    --env CHAP_USER="$(guest_iqn $GUEST_NAME)" --env CHAP_SECRET=$CHAP_SECRET \
    --env CHAP_TARGET_SECRET=$CHAP_TARGET_SECRET "$here/guest-wire.sh" "$here/guest-lib.sh"
# Linux sends no termination request and gives no cause for one: a greeting, then PDUs by hand.
GREETING='\x00\x00\x80\x00\x80\x00\x00\x00'$(printf '\\x00%.0s' $(seq 120))
# talk PDU: after the greeting; what comes back is read until the target closes, or as many bytes as asked for.
talk() {
    inside bash -c 'exec 3<>/dev/tcp/10.77.1.1/4420; printf "$0" >&3; head -c "$1" <&3 >/dev/null' "$GREETING$1" "$2"
}
# A second greeting, which is out of sequence: the target says so and ends the connection.
talk "$GREETING" 280
# The host's own: a PDU that is out of sequence, with the header of it.
talk '\x02\x00\x18\x00\x20\x00\x00\x00\x02\x00'"$(printf '\\x00%.0s' $(seq 14))"'\x05\x00\x18\x00\x18\x00\x00\x00' 1000
sleep 1    # dumpcap writes what it caught a moment later
kill -TERM $capturer
wait $capturer || true

dissect() { tshark -r "$capture" -o nvme-tcp.check_hdgst:TRUE -o nvme-tcp.check_ddgst:TRUE "$@" 2> >(grep -v '^Running as user' >&2); }
count() { dissect -Y "$1" -T fields -e frame.number | wc -l; }
for kind in nvme-tcp iscsi; do
    [ "$(count "$kind")" -gt 100 ] || fail "tshark found no $kind in the capture"
done
# Two dissectors of tshark 4.0 fail on sound bytes: INQUIRY of which the host asked four bytes only
# (Linux asks for a page's header first), and the error log of one entry (it reads 66 bytes of 64).
wrong='(_ws.expert.group == "Malformed" || _ws.expert.severity == "Error")'
wrong+=' && !(scsi_sbc.opcode == 0x12 && iscsi.datasegmentlength == 4) && !nvme.cmd.get_logpage.errinf.errcnt'
bad=$(count "$wrong")
[ "$bad" = 0 ] || { dissect -Y "$wrong" | head -20; fail "$bad frames are malformed or wrong"; }
dissect -Y 'nvme-tcp || iscsi' -V >"$RUN/dissected"
# What it has no name for, all of it standard: SPC-4's pages of extended INQUIRY and third-party copy,
# designators 5 (target port group) and 8 (SCSI name), REPORT and SET TARGET PORT
# GROUPS and 04/0B (standby); NVMe 2.0's identify of command sets, discovery subtype 3 and Verify; and
# the zeros after the ANA log, which nvme-cli reads in pieces of 4 KiB.
nameless='Page(:| Code:) Unknown \(0x0*8[6f]\)|SBC Opcode: Unknown \(0xa4\)|Command Descriptor: Unknown$|Service Action: Unknown \(0x0a\)|Unknown \(0x040b\)'
nameless+='|Command Set Selected: Unknown \(0x6\)|\(CNS\): Unknown \(0x0[56]\)|SUBTYPE\): Unknown \(0x03\)'
nameless+='|Opcode: 0x0c Unknown|Access State: Unknown \(0x0\)|Identifier Type: Unknown \(0x[58]\)'
# What an Authentication Receive brings it does not look into; the lines that say so are left out.
unknown=$(awk '/^NVM Express Fabrics TCP/ {proof = /Authentication Recv/} !(proof && /Nvme Data: Unknown Command/)' "$RUN/dissected" |
    grep -E 'Unknown|Unassigned|\[incorrect|Bad CRC|Digest Status: Bad' | grep -vE "$nameless" | sort | uniq -c || true)
[ -z "$unknown" ] || { echo "$unknown"; fail "tshark does not understand these fields"; }
good=$(grep -cE 'Digest Status: Good|Good CRC32' "$RUN/dissected" || true)
[ "$good" -gt 100 ] || fail "only $good digests were checked"
say "$good digests checked, all good"
for kind in 0 1 2 3 4 5 6 7 9; do
    frames=$(count "nvme-tcp.type == $kind")
    [ "$frames" -gt 0 ] || fail "no NVMe/TCP PDU of type $kind is in the capture"
    say "NVMe/TCP PDU type $kind: $frames frames"
done
if [ "$suite" != bookworm ]; then
    for kind in 5 6; do
        frames=$(count "nvme.fabrics.cmd.fctype == $kind")
        [ "$frames" -gt 0 ] || fail "no authentication command $kind is in the capture"
        say "fabrics commands of type $kind (authentication): $frames frames"
    done
fi
say "iSCSI opcodes: $(dissect -Y iscsi -T fields -e iscsi.opcode | tr ',' '\n' | sort | uniq -c | awk '{printf "%s:%s ", $2, $1}')"
say "wire: ok, $(count nvme-tcp) frames of NVMe/TCP, $(count iscsi) of iSCSI"
