#!/bin/sh
# api-session.sh SOCKET KERNEL INITRD [DISK]: a guest from its first setting to its end, by curl alone.
# The monitor has been started: mote vmm --api-sock SOCKET
set -eu
socket=$1 kernel=$2 initrd=$3 disk=${4:-}

call() {
    method=$1 path=$2 body=${3:-}
    echo "$method $path $body" >&2
    curl --silent --show-error --fail-with-body --unix-socket "$socket" -X "$method" \
        -H 'Content-Type: application/json' ${body:+--data "$body"} "http://localhost$path"
}

call PUT /boot-source "{\"kernel_image_path\": \"$kernel\", \"initrd_path\": \"$initrd\",
    \"boot_args\": \"console=ttyS0 quiet reboot=k panic=-1\"}"
call PUT /machine-config '{"vcpu_count": 2, "mem_size_mib": 128}'
if [ -n "$disk" ]; then
    call PUT /drives/data "{\"drive_id\": \"data\", \"is_root_device\": false, \"path_on_host\": \"$disk\"}"
fi
call PUT /network-interfaces/eth0 '{"iface_id": "eth0", "backend": "user"}'
call PUT /entropy '{}'
call PUT /actions '{"action_type": "InstanceStart"}'
call GET /
echo
call PATCH /vm '{"state": "Paused"}'
call GET /
echo
call PATCH /vm '{"state": "Resumed"}'
call GET /vm/config
echo
call PUT /actions '{"action_type": "PowerButton"}'
