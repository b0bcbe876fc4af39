#!/bin/sh
# run.sh KEEP PROGRAMS FLAG...: runs every fuzz target of the directory PROGRAMS with libFuzzer's
# flags, two at a time. New inputs go to KEEP/corpus, one that fails to KEEP; where KEEP is empty,
# to a temporary directory, and the one that fails is printed.
set -eu
here=$(dirname "$0") keep=$1 programs=$2
shift 2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export here programs out keep="${keep:-$out}"
mkdir -p "$keep"
# shellcheck disable=SC2016 # expanded by the inner shell, once for each target
ls "$here/targets" | sed 's/\.rs$//' | xargs -P 2 -I TARGET sh -c '
    target=$0
    mkdir -p "$keep/corpus/$target"
    if "$programs/$target" "$@" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -dict="$here/json.dict" \
        -artifact_prefix="$keep/$target-" "$keep/corpus/$target" "$here/corpus/$target" >"$out/$target.log" 2>&1
    then
        echo "fuzz $target: $(grep "^Done" "$out/$target.log")"
    else
        tail -n 60 "$out/$target.log"
        echo "fuzz $target: FAILED"
        exit 1
    fi' TARGET "$@"
