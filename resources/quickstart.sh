#!/usr/bin/env bash
# From a fresh Debian bookworm machine with git and a Rust toolchain to a Linux guest. No arguments.
#
# Installs what is missing (apt, with sudo where that is needed), builds mote, fetches Debian's cloud
# kernel and asks `mote doctor`. Then, with a terminal, boots a guest to a shell; without one, runs
# a command in a guest and prints its output and the boot time. Where this host's KVM cannot run
# Linux, the command runs in a guest inside the emulated host (tests/emulated-host).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { echo "quickstart: $*"; }

# --- What is needed -----------------------------------------------------------------------------
missing=()
command -v cc >/dev/null || missing+=(gcc)
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing+=(libc6-dev)
[ -x /bin/busybox ] && /bin/busybox --list | grep -qx insmod || missing+=(busybox-static)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
command -v cargo >/dev/null || { say "there is no Rust toolchain: install one (https://rustup.rs)"; exit 1; }

# --- Build, kernel ------------------------------------------------------------------------------
say "building mote"
cargo build --quiet --release -p mote-cli
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
mote=$target/x86_64-unknown-linux-gnu/release/mote

say "getting Debian's cloud kernel"
kernel=$(resources/kernel/packaged.sh)

# --- A guest ------------------------------------------------------------------------------------
# The first start unpacks the kernel and makes the initial RAM disk, and both are kept: it is the
# second one whose time is told. Its command has run when the line of uname arrives here.
demo='
set -o pipefail
now() { echo "${EPOCHREALTIME//[!0-9]/}"; }
first=$("$MOTE" run --timeout 300 -- true </dev/null) || { status=$?; echo "$first"; exit "$status"; }
start=$(now)
"$MOTE" run --timeout 300 -- sh -c "uname -a; cat /proc/uptime" </dev/null | {
    while IFS= read -r line; do
        [[ $line != Linux* ]] || printed=$(now)
        echo "$line"
    done
    echo "quickstart: boot time, from the start of mote to the first output: $(((${printed:?} - start) / 1000)) ms"
} || exit
echo "quickstart: from the start of mote to its exit, the guest powered off: $((($(now) - start) / 1000)) ms"
'

if doctor=$("$mote" doctor); then
    say "$(tail -n 1 <<<"$doctor")"
    if [ -t 0 ] && [ -t 1 ]; then
        say "booting a guest: 'exit' powers it off, Ctrl-A x quits, Ctrl-A h lists the keys"
        exec "$mote" run
    fi
    say "running a command in a guest"
    MOTE=$mote bash -c "$demo"
else
    why=$(grep -m1 '^fatal' <<<"$doctor" | tr -s ' ' | cut -d' ' -f2-) || why="\`mote doctor\` failed"
    say "this host's KVM cannot run Linux, so the guest runs in an emulated host: $why"
    tests/emulated-host/run --env MOTE=/usr/bin/mote --timeout 900 \
        --file "$mote:/usr/bin/mote" --file /bin/busybox \
        --file "$(dirname "$kernel"):/root/.cache/mote/kernel/packaged" \
        -- bash -c "$demo"
    say "times in there are many times longer than on hardware"
fi
