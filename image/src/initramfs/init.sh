#!/bin/sh
# The first process of mote's default guest: a shell on the console, or the command that
# `mote run -- COMMAND` handed over, and power off when that ends.

export PATH=/bin HOME=/root TERM=linux
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=755 run /run
for module in /lib/modules/mote/*.ko; do
    [ -e "$module" ] && insmod "$module"
done

cmdline=$(cat /proc/cmdline)
for word in $cmdline; do
    case $word in
        hostname=*) hostname "${word#*=}" ;;
        mote.exec=*) command=${word#*=} ;;
    esac
done

# Changing a terminal waits until what was written has left: powering off does not.
drain() {
    stty onlcr </dev/console 2>/dev/null
}

# Without ACPI there is no power to switch off.
end() {
    drain
    [ -d /sys/firmware/acpi ] && poweroff -f
    reboot -f
}

# What busybox's poweroff and reboot send to the first process, as to busybox's init (USR1, USR2,
# TERM) or to systemd (37 to 39).
trap end USR1 USR2 37 38
trap 'drain; reboot -f' TERM 39

# The driver asks for a pause when it cannot keep up: nothing typed or pasted gets lost.
stty crtscts </dev/console 2>/dev/null

cd /root
# What leads the session waits until all output has left: the terminal forgets it when it ends.
session='trap : INT QUIT; "$@" 4>&-; status=$?; stty onlcr 2>/dev/null; echo $status >&4'
set -- sh
if [ "${command+set}" ]; then
    line=$(printf '%b' "$(echo "$command" | sed 's/%/\\x/g')")
    set -- sh -c "$line"
fi
# Not in the foreground, as a shell handles no signal meanwhile; nor with &, which has all that is
# started ignore Ctrl-C. The second setsid finds itself a leader, forks and returns. Only the
# session's leader holds the pipe open, so that its end is seen however it ends.
mkfifo /session
exec 3<>/session
setsid setsid cttyhack sh -c "$session" session "$@" 3>&- 4>/session
exec 5</session 3>&-
rm /session
read -r status <&5 || status=137
if [ "${command+set}" ] && [ "$status" != 0 ]; then
    echo "mote: command exited with status $status"
fi
end
