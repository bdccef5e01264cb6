# Sourced by the scripts of this folder: where the rig, the command and the run's folder are.
# A run is one folder ($RUN): data of control plane and nodes, logs, process ids, captures.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
VOUTE_RIG=${VOUTE_RIG:-}
VOUTE_BIN=${VOUTE_BIN:-$checkout/target/release/voute}
NS=${VOUTE_RIG_NAMESPACE:-voute}
GUEST_NAME=${VOUTE_RIG_GUEST:-vhost}
CHAP_SECRET=rig-chap-secret-1
CHAP_TARGET_SECRET=rig-chap-target-secret-1

say() { printf '[cluster %s] %s\n' "$(date +%T)" "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }

# Why the rig cannot be used here; nothing when it can.
missing() {
    [ -x "$VOUTE_RIG/guest-run" ] || { echo "VOUTE_RIG names no guest runner, see tests/rig/README.md"; return; }
    [ "$(id -u)" = 0 ] || { echo "network namespaces and taps need root"; return; }
    command -v ip >/dev/null || { echo "no ip command (Debian: iproute2)"; return; }
    command -v jq >/dev/null || { echo "no jq command (Debian: jq)"; return; }
    [ -c /dev/net/tun ] || { echo "no /dev/net/tun, which guests' network cards need"; return; }
}

inside() { ip netns exec "$NS" "$@"; }
voute() { inside "$VOUTE_BIN" "$@" --token-file "$RUN/control/admin.token"; }

# await SECONDS WHAT COMMAND...: until it succeeds.
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain until $what"
        sleep 0.1
    done
}

# How the rig derives a guest's NVMe name from the guest's own.
guest_nqn() {
    local h
    h=$(printf 'rig %s' "$1" | sha256sum)
    echo "nqn.2014-08.org.nvmexpress:uuid:${h:0:8}-${h:8:4}-4${h:13:3}-a${h:17:3}-${h:20:12}"
}
guest_iqn() { echo "iqn.2026-01.test.rig:$1"; }
