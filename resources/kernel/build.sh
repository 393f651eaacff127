#!/usr/bin/env bash
# Builds mote's tuned guest kernel from Debian's linux-source-6.12, out of the tree, and caches
# it by the hash of this configuration and the source's version.
#
#   resources/kernel/build.sh             build (or find) it; prints the path of vmlinux
#   resources/kernel/build.sh --bzimages  also one bzImage for each compression, for the tests
#   resources/kernel/build.sh --path      print where it is or would be, build nothing
#
# Result: $XDG_CACHE_HOME/mote/kernel/tuned-HASH/{vmlinux,config,bzImage-*}, and the link
# $XDG_CACHE_HOME/mote/kernel/tuned, which `mote run` looks for.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mote/kernel
source_package=linux-source-6.12
source_tar=/usr/src/$source_package.tar.xz
fragment=$here/microvm.config
compressions="gzip bzip2 xz zstd lz4 lzo"

bzimages=no
path_only=no
for argument in "$@"; do
    case $argument in
        --bzimages) bzimages=yes ;;
        --path) path_only=yes ;;
        *) echo "build.sh: unknown argument '$argument' (known: --bzimages, --path)" >&2; exit 2 ;;
    esac
done

# The packages a kernel build needs; asked for only where one is missing.
tools="build-essential flex bison bc libelf-dev xz-utils cpio kmod bzip2 zstd lz4 lzop $source_package"
missing=$(for package in $tools; do
    dpkg-query -W -f='${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || echo "$package"
done)
if [ -n "$missing" ]; then
    [ "$path_only" = no ] || { echo "build.sh: not installed: $(echo $missing)" >&2; exit 1; }
    as_root=$([ "$(id -u)" = 0 ] || echo sudo)
    $as_root apt-get update -qq >&2
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >&2
fi

version=$(dpkg-query -W -f='${Version}' "$source_package")
hash=$({ echo "$version"; cat "$fragment"; } | sha256sum | cut -c1-16)
out=$cache/tuned-$hash
if [ "$path_only" = yes ]; then echo "$out/vmlinux"; exit 0; fi

mkdir -p "$cache"
exec 9>"$cache/.build.lock"
flock 9

complete() {
    [ -e "$out/vmlinux" ] || return 1
    [ "$bzimages" = no ] && return 0
    for compression in $compressions; do [ -e "$out/bzImage-$compression" ] || return 1; done
}

if ! complete; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/mote-kernel.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "build.sh: building the tuned kernel $hash from $source_package $version" >&2
    tar -xf "$source_tar" -C "$work" --strip-components=1
    build=(make -C "$work" -s -j"$(nproc)" KBUILD_BUILD_TIMESTAMP='1 January 2026'
        KBUILD_BUILD_USER=mote KBUILD_BUILD_HOST=mote)
    "${build[@]}" tinyconfig >&2
    (cd "$work" && scripts/kconfig/merge_config.sh -m .config "$fragment" >/dev/null)
    "${build[@]}" olddefconfig >&2
    # A line of the fragment that Kconfig dropped is a mistake in the fragment: say so, stop.
    dropped=$(grep '^CONFIG_[A-Z0-9_]*=' "$fragment" | grep -vxFf "$work/.config" || true)
    if [ -n "$dropped" ]; then
        echo "build.sh: the kernel's configuration did not take these lines of $fragment:" >&2
        echo "$dropped" >&2
        exit 1
    fi
    "${build[@]}" vmlinux >&2
    mkdir -p "$out"
    strip --strip-debug -o "$out/vmlinux.new" "$work/vmlinux"
    cp "$work/.config" "$out/config"
    if [ "$bzimages" = yes ]; then
        for compression in $compressions; do
            option=CONFIG_KERNEL_$(echo "$compression" | tr '[:lower:]' '[:upper:]')
            sed -i -E '/CONFIG_KERNEL_(GZIP|BZIP2|LZMA|XZ|LZO|LZ4|ZSTD)\b/d' "$work/.config"
            echo "$option=y" >>"$work/.config"
            "${build[@]}" olddefconfig >&2
            grep -qx "$option=y" "$work/.config"
            "${build[@]}" bzImage >&2
            cp "$work/arch/x86/boot/bzImage" "$out/bzImage-$compression"
        done
    fi
    mv "$out/vmlinux.new" "$out/vmlinux"
fi
ln -sfn "tuned-$hash" "$cache/tuned"
echo "$out/vmlinux"
