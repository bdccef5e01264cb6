# Sourced: a cluster in a folder of its own, ended and removed with the script that sources this.
why=$(missing)
[ -z "$why" ] || { printf '\n*** SKIPPED: no Linux host was tested: %s ***\n\n' "$why"; exit 77; }
RUN=$(mktemp -d "${TMPDIR:-/tmp}/voute-rig.XXXXXX")
export RUN VOUTE_BIN VOUTE_RIG
leave() {
    local status=$?
    # What this script left in the background, such as a capture.
    jobs -p | xargs -r kill 2>/dev/null || true
    "$here/cluster.sh" down || true
    if [ $status = 0 ] && [ -z "${KEEP:-}" ]; then rm -rf "$RUN"; else say "logs are in $RUN"; fi
}
trap leave EXIT
"$here/cluster.sh" up
