#!/bin/sh
# fuzz/run.sh TARGET [SECONDS]: runs a fuzz target on two cores, 15 minutes if not said otherwise, from its
# seeds. What it finds is in fuzz/corpus/TARGET and, if it is a fault of mote, in fuzz/artifacts/TARGET.
set -eu
target=$1
seconds=${2:-900}
triple=x86_64-unknown-linux-gnu
cd "$(dirname "$0")"

# rustc counts coverage for nightly only, and this is told to be one. No sanitizer: it makes a third of the
# executions of it, and what is found can be put through one afterwards (docs/fuzzing.md).
RUSTC_BOOTSTRAP=1 cargo fuzz build "$target" -s none --target "$triple"

# A copy: jobs start it again and again, and someone may build meanwhile.
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
cp "target/$triple/release/$target" "$run/"
mkdir -p "corpus/$target" "artifacts/$target"

# An input that takes ten seconds, or half a gigabyte, is as much a fault as a panic.
nice -n 10 "$run/$target" -fork=2 -ignore_ooms=0 -ignore_timeouts=0 -timeout=10 -rss_limit_mb=512 \
    -max_len=4096 -max_total_time="$seconds" -artifact_prefix="artifacts/$target/" \
    "corpus/$target" "seeds/$target"
