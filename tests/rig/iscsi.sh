#!/usr/bin/env bash
# A Linux host on iSCSI: a cluster of its own, the guest, its verdict.
#   iscsi.sh [suite]      bookworm (kernel 6.1) or trixie (6.12)
# env QUICK=1, DIGESTS=1, FILE_SYSTEM=ext4|xfs
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export CHAP=1
. "$here/with-cluster.sh"
RIG_SUITE=${1:-bookworm} "$VOUTE_RIG/guest-run" ${COLD:+--cold} --net "ns:$NS" --name $GUEST_NAME --smp "${SMP:-1}" --timeout 900 \
    --env IQN="$("$here/cluster.sh" iqn)" --env CLUSTER="RUN=$RUN VOUTE_BIN=$VOUTE_BIN VOUTE_RIG=$VOUTE_RIG VOUTE_RIG_NAMESPACE=$NS $here/cluster.sh" \
    --env CHAP_USER="$(guest_iqn $GUEST_NAME)" --env CHAP_SECRET=$CHAP_SECRET \
    --env CHAP_TARGET_SECRET=$CHAP_TARGET_SECRET \
    --env QUICK="${QUICK:-}" --env DIGESTS="${DIGESTS:-}" --env FILE_SYSTEM="${FILE_SYSTEM:-ext4}" \
    "$here/guest-iscsi.sh" "$here/guest-lib.sh"
