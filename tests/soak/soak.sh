#!/usr/bin/env bash
# make soak: builds what is needed once for a commit, and plays the parts named, one after the other, or side by side
# with SIDE_BY_SIDE=1. docs/soak/README.md says what they are.
set -euo pipefail

all=(kills idle blackholes crowd memory stops sim)
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
for part in "${parts[@]}"; do
    case " ${all[*]} " in
        *" $part "*) ;;
        *) echo "There is no part $part. The parts are: ${all[*]}" >&2; exit 2 ;;
    esac
done

cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/soak" docs/soak

# What a report is for: the last commit that changed more than documents. Reports are documents themselves.
code=(. ':(exclude)docs' ':(exclude)*.md')
commit=$(git log -1 --format=%H -- "${code[@]}")
folder=$target/soak/${commit:0:10}
if [ -n "$(git status --porcelain -- "${code[@]}")" ]; then
    commit="$commit with changes"
    folder=$folder-with-changes
fi

# The path of a test's program, from what cargo says of its builds.
executable() {
    sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -n 1
}

# Copies, so that nothing that is built meanwhile takes a program away from a part.
build() {
    local said
    echo "==> the programs for $commit"
    said=$("$cargo" test --locked --release --features failpoints --test soak --test sim --no-run --message-format=json)
    mkdir -p "$folder.new"
    cp "$(executable soak <<<"$said")" "$folder.new/soak"
    cp "$(executable sim <<<"$said")" "$folder.new/simulation"
    cp "$target/release/rejoin" "$folder.new/rejoin-failpoints"
    "$cargo" build --locked --release --bin rejoin
    cp "$target/release/rejoin" "$folder.new/rejoin"
    mkdir -p "$folder"
    mv "$folder.new"/* "$folder/"
    rmdir "$folder.new"
}

(
    # Parts that are started side by side by hand build once.
    flock 9
    if [ ! -x "$folder/rejoin" ] || [[ $folder == *-with-changes ]]; then build; fi
) 9>"$target/soak/lock"

export SOAK_COMMIT=$commit SOAK_FOLDER=$folder SOAK_REPORTS=docs/soak
export SOAK_SERVER=$folder/rejoin SOAK_SERVER_WITH_POINTS=$folder/rejoin-failpoints SOAK_SIMULATION=$folder/simulation

# Takes the place of the shell that calls it, so that a signal reaches it.
play() {
    local nice=()
    # Seeds take all the time there is: what is timed comes first.
    [ "$1" != sim ] || nice=(nice -n 19)
    exec "${nice[@]}" "$folder/soak" --exact "$1::$1_at_full_length" --ignored --nocapture
}

failed=()
if [ -n "${SIDE_BY_SIDE:-}" ]; then
    pids=()
    trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
    for part in "${parts[@]}"; do
        echo "==> $part: $folder/$part.log"
        (play "$part") >"$folder/$part.log" 2>&1 &
        pids+=($!)
    done
    for index in "${!parts[@]}"; do
        wait "${pids[$index]}" || failed+=("${parts[$index]}")
    done
else
    for part in "${parts[@]}"; do
        echo "==> $part"
        (play "$part") || failed+=("$part")
    done
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "Not passed, or not at its end: ${failed[*]}" >&2
    exit 1
fi
echo "Passed: ${parts[*]}"
