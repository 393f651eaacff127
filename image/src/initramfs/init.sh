#!/bin/sh
# The first process of mote's default guest: a shell on the console, or the command that
# `mote run -- COMMAND` handed over, and power off when that ends. With root= the file system of that
# disk takes its place: as a kernel would mount it that has the drivers built in.

export PATH=/bin HOME=/root TERM=linux
mount -t devtmpfs dev /dev
# Tells `mote run --explain` how far this guest is, by the boot timer's port; some kernels have no /dev/port.
mark() {
    [ "$mote_explain" ] && [ -c /dev/port ] || return
    dd of=/dev/port bs=1 count=1 seek=1008 2>/dev/null <<EOF
$1
EOF
}
mark '<'
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
for module in /lib/modules/mote/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
# A console whose driver is such a module was not there when the kernel opened it for this process.
if ! [ -e /proc/self/fd/2 ] && (: <>/dev/console) 2>/dev/null; then
    exec <>/dev/console >&0 2>&0
fi

# The kernel passes on words that it does not know as variables.
unset command jobs address root root_type root_flags root_wait init
cmdline=$(cat /proc/cmdline)
access=ro
for word in $cmdline; do
    case $word in
        hostname=*) hostname "${word#*=}" ;;
        mote.exec=*) command=${word#*=} ;;
        mote.jobs) jobs=yes ;;
        ip=*) address=${word#*=} ;;
        root=*) root=${word#*=} ;;
        rootfstype=*) root_type=${word#*=} ;;
        rootflags=*) root_flags=${word#*=} ;;
        rootwait) root_wait=yes ;;
        ro | rw) access=$word ;;
        init=*) init=${word#*=} ;;
    esac
done

# The first network interface that is no loopback.
first_interface() {
    for device in /sys/class/net/*/device; do
        [ -e "$device" ] || continue
        device=${device%/device}
        echo "${device##*/}"
        return
    done
}

# ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1, or ip=dhcp (Linux,
# Documentation/admin-guide/nfs/nfsroot.rst).
configure_network() {
    local client gateway mask name device method dns0 dns1 rest
    case $1 in
        *:*) IFS=: read -r client rest gateway mask name device method dns0 dns1 rest <<EOF
$1
EOF
            ;;
        *) method=$1 ;;
    esac
    device=${device:-$(first_interface)}
    [ "$device" ] || return
    case $method in
        dhcp* | on | any | both)
            udhcpc -i "$device" -q -n -t 5 -T 2 -A 1 >/dev/null 2>&1 ||
                echo "mote: no answer to DHCP on $device" ;;
        *) # Nothing is asked for: what is given counts.
            [ "$client" ] || return
            ip addr add "$client${mask:+/$mask}" dev "$device"
            ip link set "$device" up
            [ -z "$gateway" ] || ip route add default via "$gateway" dev "$device" onlink
            for server in $dns0 $dns1; do echo "nameserver $server"; done >/etc/resolv.conf ;;
    esac
}

ip link set lo up 2>/dev/null
if [ "$address" ]; then
    # A kernel that has this file has done it.
    if [ -e /proc/net/pnp ]; then
        grep -E '^(nameserver|domain|search) ' /proc/net/pnp >/etc/resolv.conf
    else
        configure_network "$address"
    fi
fi

# Finds the disk that root= names, and prints it.
find_root() {
    case $1 in
        LABEL=* | UUID=*) findfs "$1" ;;
        PARTUUID=* | PARTLABEL=*)
            local key=${1%%=*} partition
            [ "$key" = PARTLABEL ] && key=PARTNAME
            partition=$(grep -lixF "$key=${1#*=}" /sys/class/block/*/uevent 2>/dev/null | head -n 1)
            partition=${partition%/uevent}
            [ "$partition" ] && echo "/dev/${partition##*/}" ;;
        *) [ -b "$1" ] && echo "$1" ;;
    esac
}

# Mounts it at /newroot; ends this guest by a panic, as a kernel would, where that is impossible.
mount_root() {
    local disk=$root tries=0
    mkdir -p /newroot
    if [ "$root_type" != virtiofs ] && [ "$root_type" != 9p ]; then
        until disk=$(find_root "$root" 2>/dev/null) && [ "$disk" ]; do
            tries=$((tries + 1))
            if [ "$tries" -gt 50 ] && [ -z "$root_wait" ]; then
                echo "mote: there is no disk $root (there are: $(cd /sys/class/block && echo *))"
                drain
                exit 1
            fi
            usleep 100000
        done
    fi
    if ! mount ${root_type:+-t "$root_type"} -o "$access${root_flags:+,$root_flags}" "$disk" /newroot; then
        echo "mote: cannot mount the root file system on $root"
        drain
        exit 1
    fi
}

# Hands over to the init of the mounted root, which finds things as after a mount by the kernel.
switch_to_root() {
    if [ -z "$init" ]; then
        for init in /sbin/init /etc/init /bin/init /bin/sh; do
            # Links in there may be absolute.
            [ -e "/newroot$init" ] || [ -L "/newroot$init" ] && break
        done
    fi
    umount /dev/pts
    umount /tmp
    umount /run
    umount /sys
    mount --move /dev /newroot/dev 2>/dev/null || umount -l /dev
    umount /proc
    # What a kernel gives the first process.
    unset PATH
    export HOME=/
    exec /bin/switch_root -c /dev/console /newroot "$init"
}

# Changing a terminal waits until what was written has left: powering off does not.
drain() {
    stty onlcr </dev/console 2>/dev/null
}

# Without ACPI there is no power to switch off.
end() {
    drain
    [ -d /newroot ] && { sync; mount -o remount,ro /newroot 2>/dev/null; }
    [ -d /sys/firmware/acpi ] && poweroff -f
    reboot -f
}

if [ "${root+set}" ]; then
    mount_root
    [ "${command+set}${jobs+set}" ] || switch_to_root
    for directory in dev proc sys run tmp; do
        mount --rbind "/$directory" "/newroot/$directory" 2>/dev/null
    done
    [ -s /etc/resolv.conf ] && [ -f /newroot/etc/resolv.conf ] &&
        mount --bind /etc/resolv.conf /newroot/etc/resolv.conf
fi

# What busybox's poweroff and reboot send to the first process, as to busybox's init (USR1, USR2,
# TERM) or to systemd (37 to 39).
trap end USR1 USR2 37 38
trap 'drain; reboot -f' TERM 39

# The driver asks for a pause when it cannot keep up: nothing typed or pasted gets lost.
stty crtscts </dev/console 2>/dev/null

cd /root
# Jobs come in the place of the shell, and after the command.
serve_jobs() {
    terminal=$(cat /sys/class/tty/console/active)
    terminal=${terminal##* }
    exec mote-agent "/dev/${terminal:-null}" ${root+/newroot}
}
[ -z "${jobs+set}" ] || [ "${command+set}" ] || serve_jobs

# What leads the session waits until all output has left: the terminal forgets it when it ends.
session='trap : INT QUIT; "$@" 4>&-; status=$?; stty onlcr 2>/dev/null; echo $status >&4'
set -- sh
if [ "${command+set}" ]; then
    line=$(printf '%b' "$(echo "$command" | sed 's/%/\\x/g')")
    set -- sh -c "$line"
    # The command of a guest with a root disk runs in there, with the programs that it has.
    in_root='export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        exec chroot /newroot /bin/sh -c "cd /root 2>/dev/null; $1"'
    [ -z "${root+set}" ] || set -- sh -c "$in_root" sh "$line"
fi
# Not in the foreground, as a shell handles no signal meanwhile; nor with &, which has all that is
# started ignore Ctrl-C. The second setsid finds itself a leader, forks and returns. Only the
# session's leader holds the pipe open, so that its end is seen however it ends.
mkfifo /session
exec 3<>/session
mark '>'
unset mote_explain
setsid setsid cttyhack sh -c "$session" session "$@" 3>&- 4>/session
exec 5</session 3>&-
rm /session
read -r status <&5 || status=137
exec 5<&-
if [ "${command+set}" ] && [ "$status" != 0 ]; then
    echo "mote: command exited with status $status"
    end
fi
[ -z "${jobs+set}" ] || serve_jobs
end
