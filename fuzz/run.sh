#!/usr/bin/env bash
# Builds the fuzz targets and runs each for some seconds, over the inputs that are kept and what it makes of them.
#
#     fuzz/run.sh [SECONDS [TARGET...]]
#
# The coverage that guides libFuzzer is LLVM's, which the stable compiler has too. There is no sanitizer: what is fuzzed has no
# unsafe code.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-5}
# To libFuzzer no seconds at all are no limit; here they are the inputs that are kept and nothing else.
limit=(-max_total_time="$seconds")
[ "$seconds" != 0 ] || limit=(-runs=0)
targets=("${@:2}")
if [ "${#targets[@]}" -eq 0 ]; then
    for file in fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

# With `--target`, build scripts and macros are not instrumented.
host=$(rustc --print host-tuple)
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# The program's own versions of what it depends on, and libFuzzer besides.
if [ ../Cargo.lock -nt Cargo.lock ]; then
    cp ../Cargo.lock Cargo.lock
fi
RUSTFLAGS="--cfg fuzzing $coverage" cargo build --quiet --target-dir target --target "$host"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    # Past the time or the memory of a slow machine's worst case, an input is one that hangs or that swells.
    options=("${limit[@]}" -timeout=20 -rss_limit_mb=512 -print_final_stats=1 -artifact_prefix="artifacts/$target/")
    if "target/$host/debug/$target" "${options[@]}" "corpus/$target" "seeds/$target" >"$log" 2>&1 &&
        executions=$(awk '/^stat::number_of_executed_units:/ { print $2 }' "$log") && [ "${executions:-0}" -gt 0 ]; then
        edges=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
        printf 'fuzz %-8s %9d executions in %d s, %d edges\n' "$target" "$executions" "$seconds" "${edges#cov: }"
    else
        tail -n 60 "$log" >&2
        printf 'fuzz %-8s FAILED: see above, and fuzz/artifacts/%s\n' "$target" "$target" >&2
        failed+=("$target")
    fi
done
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'fuzz: failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
