#!/usr/bin/env bash
# The quick way to a guest kernel: Debian's cloud kernel as it is packaged, without a build.
#
#   resources/kernel/packaged.sh          fetch (or find) it; prints the path of vmlinuz
#   resources/kernel/packaged.sh --path   print where it is or would be, fetch nothing
#
# Result: $XDG_CACHE_HOME/mote/kernel/packaged-VERSION-HASH/{vmlinuz,config,modules/NN-NAME.ko}, and
# the link $XDG_CACHE_HOME/mote/kernel/packaged. The modules are what a mote guest needs and the
# kernel has not built in; loading them in the order of their names works. HASH is that of the list.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mote/kernel
. "$here/debian-kernel.sh"

# Buses and devices first, then what file systems need. One that is built in is named all the same: it
# may not be in another version.
modules="virtio_mmio virtio_pci virtio_console virtio_blk virtio_net vsock vmw_vsock_virtio_transport
    virtio-rng virtio_balloon virtio_mem virtio_pmem nd_pmem ext4 squashfs erofs overlay loop"

path_only=no
for argument in "$@"; do
    case $argument in
        --path) path_only=yes ;;
        *) echo "packaged.sh: unknown argument '$argument' (known: --path)" >&2; exit 2 ;;
    esac
done

debian_kernel_resolve
# shellcheck disable=SC2086
name=packaged-$debian_kernel_version-$(echo $modules | sha256sum | cut -c1-8)
out=$cache/$name
if [ "$path_only" = yes ]; then echo "$out/vmlinuz"; exit 0; fi

if [ ! -e "$out/vmlinuz" ]; then
    debian_kernel_need xz=xz-utils objcopy=binutils modprobe=kmod
    mkdir -p "$cache"
    exec 9>"$cache/.packaged.lock"
    flock 9
fi
if [ ! -e "$out/vmlinuz" ]; then
    work=$(mktemp -d "$cache/packaged.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    debian_kernel_unpack "$work/package"
    mkdir -p "$work/new/modules"
    # shellcheck disable=SC2086
    debian_kernel_modules "$work/package" $modules >"$work/list"
    number=0
    while read -r file; do
        base=${file##*/}
        debian_kernel_strip_module "$file" "$work/new/modules/$(printf '%02d' "$number")-${base%%.ko*}.ko"
        number=$((number + 1))
    done <"$work/list"
    cp "$work/package/boot/config-$debian_kernel_release" "$work/new/config"
    cp "$work/package/boot/vmlinuz-$debian_kernel_release" "$work/new/vmlinuz"
    chmod 755 "$work/new"
    rm -rf "$out"
    mv "$work/new" "$out"
fi
[ "$(readlink "$cache/packaged" || true)" = "$name" ] || ln -sfn "$name" "$cache/packaged"
echo "$out/vmlinuz"
