# Sourced by packaged.sh and by tests/emulated-host/run: gets Debian's cloud kernel package
# without installing it, and takes out of it what they need. All names start with debian_kernel_.
# The caller has set -euo pipefail.

debian_kernel_meta_package=linux-image-6.12-cloud-amd64
debian_kernel_cache=${XDG_CACHE_HOME:-$HOME/.cache}/mote/kernel/debian

debian_kernel_die() { echo "${0##*/}: $*" >&2; exit 1; }

# debian_kernel_need PROGRAM=PACKAGE...: installs the packages whose programs are not there.
debian_kernel_need() {
    local as_root="" lock
    debian_kernel_find_missing "$@"
    [ -n "$debian_kernel_missing" ] || return 0
    [ "$(id -u)" = 0 ] || as_root=sudo
    # Another script may be installing the same: apt does not wait for another apt.
    mkdir -p "${XDG_CACHE_HOME:-$HOME/.cache}/mote"
    exec {lock}>"${XDG_CACHE_HOME:-$HOME/.cache}/mote/.apt.lock"
    flock "$lock"
    debian_kernel_find_missing "$@"
    if [ -n "$debian_kernel_missing" ]; then
        echo "${0##*/}: installing$debian_kernel_missing" >&2
        $as_root apt-get update -qq >&2 || true
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $debian_kernel_missing >&2 ||
            debian_kernel_die "cannot install$debian_kernel_missing"
    fi
    exec {lock}>&-
}

# Sets debian_kernel_missing to the packages of those PROGRAM=PACKAGE whose program is not there.
debian_kernel_find_missing() {
    local pair
    debian_kernel_missing=""
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || debian_kernel_missing+=" ${pair#*=}"
    done
}

debian_kernel_ask_apt() {
    local package version
    package=$(apt-cache depends "$debian_kernel_meta_package" 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [ -n "$package" ] || return 1
    version=$(apt-cache show --no-all-versions "$package" 2>/dev/null | awk '$1 == "Version:" { print $2; exit }')
    [ -n "$version" ] || return 1
    echo "$package $version"
}

# Sets debian_kernel_package and debian_kernel_version to what apt would install now. Asking apt
# takes over a second, so its answer is kept until apt's lists change.
debian_kernel_resolve() {
    local kept=$debian_kernel_cache/latest answer as_root=""
    if ! { [ -s "$kept" ] && [ "$kept" -nt /var/lib/apt/lists ]; }; then
        if ! answer=$(debian_kernel_ask_apt) && [ ! -s "$kept" ]; then
            [ "$(id -u)" = 0 ] || as_root=sudo
            $as_root apt-get update -qq >&2 || true
            answer=$(debian_kernel_ask_apt) ||
                debian_kernel_die "apt knows no package $debian_kernel_meta_package (it is in bookworm-security)"
        fi
        if [ -n "$answer" ]; then
            mkdir -p "$debian_kernel_cache"
            echo "$answer" >"$kept.$$"
            mv "$kept.$$" "$kept"
        fi
    fi
    read -r debian_kernel_package debian_kernel_version <"$kept"
}

# debian_kernel_unpack DIR: unpacks the resolved package into DIR (boot/, lib/modules/RELEASE/),
# with an index of the modules, and sets debian_kernel_release. Downloads it once.
debian_kernel_unpack() {
    local dir=$1 work as_root=""
    local deb=$debian_kernel_cache/${debian_kernel_package}_$debian_kernel_version.deb
    mkdir -p "$debian_kernel_cache" "$dir"
    exec {debian_kernel_lock}>"$debian_kernel_cache/.lock"
    flock "$debian_kernel_lock"
    if [ ! -s "$deb" ]; then
        echo "${0##*/}: downloading $debian_kernel_package $debian_kernel_version" >&2
        work=$(mktemp -d "$debian_kernel_cache/download.XXXXXX")
        [ "$(id -u)" = 0 ] || as_root=sudo
        (
            cd "$work"
            get() { apt-get download -qq "$debian_kernel_package=$debian_kernel_version" 2>"$work/log"; }
            # Lists older than the mirror name files that are gone: refresh them, once.
            get || { $as_root apt-get update -qq >&2 && get; }
        ) || { cat "$work/log" >&2; rm -rf "$work"; debian_kernel_die "cannot download $debian_kernel_package"; }
        rm -f "$debian_kernel_cache"/*.deb
        mv "$work"/*.deb "$deb"
        rm -rf "$work"
    fi
    dpkg-deb -x "$deb" "$dir"
    flock -u "$debian_kernel_lock"
    debian_kernel_release=$(ls "$dir/lib/modules")
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$dir" "$debian_kernel_release"
}

# debian_kernel_modules DIR NAME...: prints the files of these modules and of what they depend
# on, in an order in which they can be loaded. What is built into the kernel is left out.
debian_kernel_modules() {
    local dir=$1 name
    shift
    for name in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin modprobe -C /dev/null -d "$dir" -S "$debian_kernel_release" --show-depends "$name" ||
            debian_kernel_die "$debian_kernel_package has no module $name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# debian_kernel_strip_module FILE.ko.xz OUT.ko: uncompressed, without debug information, type
# information (BTF) and signature: a fraction of the size, and loads in a fraction of the time.
debian_kernel_strip_module() {
    local out=$2
    case $1 in
        *.xz) xz -dc "$1" >"$out.full" ;;
        *.zst) zstd -dcq "$1" >"$out.full" ;;
        *) cp "$1" "$out.full" ;;
    esac
    objcopy --strip-debug --remove-section=.BTF --remove-section=.BTF.base "$out.full" "$out"
    rm "$out.full"
}

# debian_kernel_vmlinux VMLINUZ OUT: the ELF kernel inside a bzImage. The boot header says where
# the payload starts, counted from the protected-mode code, and how long it is; its last four
# bytes are the uncompressed size (Linux: Documentation/arch/x86/boot.rst, payload_offset).
debian_kernel_vmlinux() {
    local image=$1 out=$2 sectors start length magic
    number() { od -An -v -t"u$3" -j"$2" -N"$3" "$1" | tr -d ' \n'; }
    [ "$(od -An -c -j514 -N4 "$image" | tr -d ' \n')" = HdrS ] ||
        debian_kernel_die "$image is not a bzImage"
    sectors=$(number "$image" $((0x1f1)) 1)
    start=$(((sectors + 1) * 512 + $(number "$image" $((0x248)) 4)))
    length=$(number "$image" $((0x24c)) 4)
    magic=$(od -An -v -tx1 -j"$start" -N4 "$image" | tr -d ' \n')
    payload() { dd if="$image" bs=1M iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) status=none; }
    case $magic in
        28b52ffd) payload | zstd -dcq >"$out" ;;
        fd377a58) payload | xz -dcq >"$out" ;;
        1f8b*) payload | gzip -dcq >"$out" ;;
        *) debian_kernel_die "$image is compressed in a way not known here (it starts with $magic)" ;;
    esac
}
