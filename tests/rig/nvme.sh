#!/usr/bin/env bash
# A Linux host on NVMe/TCP: a cluster of its own, the guest, its verdict.
#   nvme.sh [suite]      bookworm (kernel 6.1) or trixie (6.12)
# env QUICK=1, ROUNDS (how often the owner is frozen and killed once more), EXTRA="--hdr-digest --data-digest"
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$here/with-cluster.sh"
RIG_SUITE=${1:-bookworm} "$VOUTE_RIG/guest-run" ${COLD:+--cold} --net "ns:$NS" --name $GUEST_NAME --smp "${SMP:-1}" --timeout $((1200 + 180 * ${ROUNDS:-0})) \
    --env NQN="$("$here/cluster.sh" nqn)" --env CLUSTER="RUN=$RUN VOUTE_BIN=$VOUTE_BIN VOUTE_RIG=$VOUTE_RIG VOUTE_RIG_NAMESPACE=$NS $here/cluster.sh" \
    --env QUICK="${QUICK:-}" --env ROUNDS="${ROUNDS:-0}" --env EXTRA="${EXTRA:-}" "$here/guest-nvme.sh" "$here/guest-lib.sh"
