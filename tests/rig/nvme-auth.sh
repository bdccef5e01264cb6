#!/usr/bin/env bash
# A Linux host that must prove itself over NVMe (DH-HMAC-CHAP): a cluster of its own, the guest, its verdict.
#   nvme-auth.sh [suite]      trixie (kernel 6.12); Debian 12's kernel 6.1 has no such authentication
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ "${1:-trixie}" != bookworm ] || { say "SKIPPED: kernel 6.1 is built without NVMe authentication"; exit 0; }
. "$here/with-cluster.sh"
RIG_SUITE=${1:-trixie} "$VOUTE_RIG/guest-run" ${COLD:+--cold} --net "ns:$NS" --name $GUEST_NAME --timeout 600 \
    --env NQN="$("$here/cluster.sh" nqn)" --env RUN="$RUN" \
    --env CLUSTER="RUN=$RUN VOUTE_BIN=$VOUTE_BIN VOUTE_RIG=$VOUTE_RIG VOUTE_RIG_NAMESPACE=$NS $here/cluster.sh" \
    "$here/guest-nvme-auth.sh" "$here/guest-lib.sh"
