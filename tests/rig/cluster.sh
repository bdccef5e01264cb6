#!/usr/bin/env bash
# Two sites and a control plane in the rig's network namespace, as processes of this machine.
#   cluster.sh up            site a at 10.77.1.1, site b at 10.77.2.1, standard ports;
#                            volume `small` (512-byte blocks, a owns it), `large` (4096, b owns it)
#   cluster.sh down          end the processes of this run
#   cluster.sh kill SITE     kill -9 the site's node
#   cluster.sh freeze SITE   stop its node's process without ending it: silent, no FIN, no RST
#   cluster.sh thaw SITE     let it go on
#   cluster.sh start SITE    start it again and wait until it is heard
#   cluster.sh owner VOLUME  print the site that serves a volume
#   cluster.sh healthy       wait until every volume has both legs in sync
#   cluster.sh do WORDS...   the voute command, as administrator
#   cluster.sh nqn|iqn       the cluster's subsystem, its target
# env RUN (folder of the run, required), VOUTE_RIG, VOUTE_BIN, VOUTE_RIG_NAMESPACE
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${RUN:?the folder of the run}"

# launch NAME COMMAND...: in the background, its id and output in the run's folder.
launch() {
    local name=$1
    shift
    setsid ip netns exec "$NS" "$@" >>"$RUN/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
}

# end NAME SIGNAL: and wait until it is gone.
end() {
    local pid
    pid=$(cat "$RUN/$1.pid" 2>/dev/null) || return 0
    kill "-$2" "$pid" 2>/dev/null || true
    kill -CONT "$pid" 2>/dev/null || true
    await 30 "$1 has ended" gone "$pid"
    rm -f "$RUN/$1.pid"
}
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }

start_node() {
    launch "$1" "$VOUTE_BIN" node --id "$(cat "$RUN/$1.id")" --secret-file "$RUN/$1.secret" \
        --control http://127.0.0.1:7421 --data-dir "$RUN/$1" --reactors 1 --no-pin
    await 60 "node $1-1 is heard" heard "$1"
}
heard() { voute node show "$1-1" -o json | jq -e '.observed.heard'; }

add_site() {
    local site=$1 address=$2
    voute site add "$site" >/dev/null
    voute node add "$site-1" --site "$site" --address "$address" --secret-out "$RUN/$site.secret" >/dev/null
    voute node show "$site-1" -o json | jq -er .node >"$RUN/$site.id"
    start_node "$site"
    voute pool create "$site" --site "$site" >/dev/null
    voute device add "$site-file" --node "$site-1" --pool "$site" "file:$RUN/$site.img:1GiB" >/dev/null
}

up() {
    "$VOUTE_RIG/netns" up "$NS"
    mkdir -p "$RUN"
    launch control "$VOUTE_BIN" control --cluster rig --data-dir "$RUN/control"
    await 30 "the control plane answers" voute status
    add_site a 10.77.1.1
    add_site b 10.77.2.1
    printf '%s' $CHAP_SECRET | voute secret put rig >/dev/null
    printf '%s' $CHAP_TARGET_SECRET | voute secret put rig.target >/dev/null
    voute host add app --nqn "$(guest_nqn $GUEST_NAME)" --iqn "$(guest_iqn $GUEST_NAME)" \
        ${CHAP:+--chap-secret rig} >/dev/null
    voute volume create small --size 256MiB --block 512 --pool a --pool b --policy automatic >/dev/null
    voute volume create large --size 320MiB --block 4096 --pool b --pool a --policy automatic >/dev/null
    voute mapping add small app >/dev/null
    voute mapping add large app >/dev/null
    healthy
    say "up in $RUN: $(nqn)"
}

names() { inside curl -sf -H "Authorization: Bearer $(cat "$RUN/control/admin.token")" http://127.0.0.1:7421/v1/cluster; }
nqn() { names | jq -er .subsystem_nqn; }
iqn() { names | jq -er .target_iqn; }

healthy() { await 120 "every volume has two legs in sync" all_healthy; }
all_healthy() { voute volume list -o json | jq -e 'map(.health) | all(. == "healthy")'; }

case ${1:-} in
up) up ;;
down)
    for name in a b control; do end "$name" TERM; done
    ;;
kill)
    end "$2" KILL
    say "site $2 killed"
    ;;
freeze)
    kill -STOP "$(cat "$RUN/$2.pid")"
    say "site $2 frozen"
    ;;
thaw)
    kill -CONT "$(cat "$RUN/$2.pid")"
    await 60 "node $2-1 is heard" heard "$2"
    say "site $2 goes on"
    ;;
start)
    start_node "$2"
    say "site $2 started"
    ;;
owner) voute volume show "$2" -o json | jq -r .owner_site.name ;;
healthy) healthy ;;
do) shift; voute "$@" ;;
nqn) nqn ;;
iqn) iqn ;;
*) sed -n '2,15p' "$0"; exit 2 ;;
esac
