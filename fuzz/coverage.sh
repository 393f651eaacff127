#!/bin/sh
# fuzz/coverage.sh TARGET [INPUTS...]: how much of mote's code the inputs of a fuzz target reach (seeds and
# corpus if not said otherwise), file by file, and the functions of those files that are never entered.
# LLVM_BIN is where llvm-cov and llvm-profdata of rustc's version of LLVM are (Debian: llvm-22).
set -eu
target=$1
shift
triple=x86_64-unknown-linux-gnu
llvm=${LLVM_BIN:-/usr/lib/llvm-22/bin}
cd "$(dirname "$0")"
mkdir -p "corpus/$target"
[ $# -gt 0 ] || set -- "corpus/$target" "seeds/$target"

RUSTC_BOOTSTRAP=1 cargo fuzz coverage --llvm-path "$llvm" -s none --target "$triple" \
    "$target" "$@" >coverage.log 2>&1 ||
    { cat coverage.log >&2; exit 1; }
rm coverage.log
binary=target/$triple/coverage/$triple/release/$target
profile=coverage/$target/coverage.profdata
# Only files of which something runs: the others belong to other devices.
"$llvm/llvm-cov" export -summary-only -instr-profile "$profile" "$binary" |
    python3 -c '
import json, sys
total = [0] * 4
for file in json.load(sys.stdin)["data"][0]["files"]:
    name, summary = file["filename"], file["summary"]
    lines, functions = summary["lines"], summary["functions"]
    if "/devices/src/" not in name or lines["covered"] == 0:
        continue
    row = [lines["covered"], lines["count"], functions["covered"], functions["count"]]
    total = [a + b for a, b in zip(total, row)]
    print("%-46s lines %4d of %4d  functions %3d of %3d" % (name.split("/devices/src/")[1], *row))
print("%-46s lines %4d of %4d  functions %3d of %3d" % ("all", *total))
'
"$llvm/llvm-cov" export -instr-profile "$profile" "$binary" |
    python3 -c '
import json, re, sys
entered, seen = {}, {}
for function in json.load(sys.stdin)["data"][0]["functions"]:
    file, place = function["filenames"][0], function["regions"][0][0]
    if "/devices/src/" not in file:
        continue
    file = file.split("/devices/src/")[1]
    # Generic functions are there several times.
    entered.setdefault(file, {}).setdefault(place, 0)
    entered[file][place] += function["count"]
print("never entered, in files of which something is:")
for file, places in sorted(entered.items()):
    missed = sorted(place for place, count in places.items() if count == 0)
    if missed and len(missed) < len(places):
        print(" ", file + ":", " ".join(map(str, missed)))
'
