#!/usr/bin/env bash
# Runs all tests, and installs what they need first. Usage: tests/run.sh [FILTER]
#
# FILTER picks end-to-end cases whose names contain it (such as boot:: or console::a_shell) and
# leaves the unit tests out. Guests run directly where `mote doctor` says that Linux can boot, else
# in the emulated host.
# TEST_JOBS sets how many emulated hosts run side by side (default: CPUs).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
filter=${1:-}
jobs=${TEST_JOBS:-$(nproc)}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

say() { echo "tests/run.sh: $*"; }

# --- What is needed -----------------------------------------------------------------------------
missing=()
PATH=$PATH:/usr/sbin:/sbin
need() { command -v "$1" >/dev/null || missing+=("$2"); }
install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
}
need cc build-essential
need git git
need mke2fs e2fsprogs
need mksquashfs squashfs-tools
need mkfs.erofs erofs-utils
need ip iproute2
need curl curl
need chromium chromium
[ -x /bin/busybox ] && /bin/busybox --list | grep -qx insmod || missing+=(busybox-static)
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
install_missing
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
command -v cargo >/dev/null || { say "there is no Rust toolchain: install one (https://rustup.rs)"; exit 1; }

kernels=${XDG_CACHE_HOME:-$HOME/.cache}/mote/kernel
say "kernels"
resources/kernel/packaged.sh >"$log/packaged" || { cat "$log/packaged"; exit 1; }
resources/kernel/build.sh --bzimages >"$log/build" || { tail -n 50 "$log/build"; exit 1; }
say "Python programs"
PYTHON_TOOLS=$(tests/python/install.sh)
export PYTHON_TOOLS

# --- Build --------------------------------------------------------------------------------------
say "build"
cargo build --quiet --release
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
mote=$target/x86_64-unknown-linux-gnu/release/mote
live=$target/x86_64-unknown-linux-gnu/release/mote-live
probe=$target/x86_64-unknown-linux-gnu/release/guest-probe
cases=$(cargo test --quiet --no-run --message-format json -p tests --test cases |
    sed -n 's/.*"executable":"\([^"]*\/cases-[^"]*\)".*/\1/p' | tail -n 1)

# --- Tests --------------------------------------------------------------------------------------
failed=0
# Groups of cases whose guests are Linux.
linux_groups=(boot:: end:: console:: console_virtio:: console_ends:: block:: net:: mmds:: vsock:: balloon:: entropy:: machine:: pci:: pmem:: memory:: service:: snapshot:: snapshot_devices:: template:: explain:: fork:: bench_linux:: client:: attach:: live::)
# What the library that the case of client:: runs needs beside a Linux guest, as Debian's packages.
client_packages=(python3-minimal libpython3-stdlib openssh-client dropbear-bin iptables)
# The runtimes that the cases of bench_linux:: measure.
runtime_packages=(crun runc runsc podman containerd qemu-system-x86)
# Runs one suite, with its output on the terminal and in the log.
suite() {
    local name=$1
    shift
    "$@" 2>&1 | tee "$log/suite-$name" || failed=1
}

# Runs the Linux cases in an emulated host, and tiny guests: every N-th of them, from the I-th on.
in_emulated_host() {
    local tuned packaged package tool tools=()
    for tool in mke2fs mksquashfs mkfs.erofs ip; do tools+=(--file "$(realpath "$(command -v $tool)"):/usr/sbin/$tool"); done
    for package in "${client_packages[@]}" "${runtime_packages[@]}"; do tools+=(--package "$package"); done
    tuned=$(readlink -f "$kernels/tuned")
    packaged=$(readlink -f "$kernels/packaged")
    tests/emulated-host/run --memory 12G --timeout 2400 \
        --env HOME=/root --env MOTE=/usr/bin/mote --env "TEST_SHARD=$1/$2" --env TEST_LINUX=1 \
        --env GUEST_PROBE=/usr/bin/guest-probe --env MOTE_LIVE=/usr/bin/mote-live \
        --file "$PYTHON_TOOLS/clients:/usr/lib/python-tools/clients" --env PYTHON_TOOLS=/usr/lib/python-tools \
        --file "$(command -v curl):/usr/bin/curl" --file resources/examples:/examples --env EXAMPLES=/examples \
        --file "$mote:/usr/bin/mote" --file "$cases:/usr/bin/cases" --file /bin/busybox \
        --file "$probe:/usr/bin/guest-probe" --file "$live:/usr/bin/mote-live" "${tools[@]}" \
        --file "$tuned:/root/.cache/mote/kernel/tuned" \
        --file "$packaged:/root/.cache/mote/kernel/packaged" \
        -- cases --test-threads 1 ${filter:+"$filter"} --skip bad_input:: --skip api:: --skip bench:: --skip bench_report:: --skip ctl:: --skip page::
}

if [ -z "$filter" ]; then
    say "unit tests"
    suite unit cargo test --quiet --no-fail-fast --workspace --exclude tests
fi
if "$mote" doctor >"$log/doctor"; then
    for package in "${client_packages[@]}" "${runtime_packages[@]}"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    install_missing
    say "end-to-end tests"
    suite cases env "MOTE=$mote" "MOTE_LIVE=$live" "GUEST_PROBE=$probe" "$cases" ${filter:+"$filter"}
else
    say "this host cannot boot Linux guests: $(grep -m1 ^fatal "$log/doctor" || tail -n 1 "$log/doctor")"
    say "end-to-end tests without Linux, here"
    suite here env "MOTE=$mote" "$cases" ${filter:+"$filter"} "${linux_groups[@]/#/--skip=}"
    say "end-to-end tests, in $jobs emulated host(s)"
    for job in $(seq "$jobs"); do
        suite "emulated-$job" in_emulated_host "$job" "$jobs" &
        pids[job]=$!
    done
    for job in $(seq "$jobs"); do
        wait "${pids[job]}" || failed=1
    done
fi

# --- The count ----------------------------------------------------------------------------------
results=$(cat "$log"/suite-*)
count() { awk -v what="$1" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ "^" what) sum += $(i - 1) } END { print sum + 0 }' <<<"$results"; }
passed=$(count passed) broken=$(count failed) skipped=$(count ignored)
# A suite that was cut off has no result.
suites=$(ls "$log"/suite-* | wc -l) ended=$(grep -l '^test result:' "$log"/suite-* | wc -l)
[ "$suites" = "$ended" ] || failed=1
reasons=$(grep -o '^test \[[^]]*\].*ignored$' <<<"$results" | sed 's/^test \[\([^]]*\)\].*/\1/' | sort -u | paste -sd, || true)
say "$passed passed, $broken failed, $skipped skipped${reasons:+ ($reasons)}"
[ "$failed" = 0 ] && [ "$broken" = 0 ]
