"""A guest from its creation to its deletion, by microheart as it is on PyPI. Usage: microheart_session.py ROOTFS KEY

Prints what it sees, a JSON object a line. microheart has no call for a pause; its client of the API has.
"""

import json
import sys

from microheart import MicroVM, api


def tell(**what):
    print(json.dumps(what), flush=True)


def in_guest(*command):
    done = vm.run(command)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def state():
    return api.request(vm.sock, "GET", "/")["state"]


rootfs, key = sys.argv[1:]
vm = MicroVM("guest-1", rootfs=rootfs, key=key, vcpu=2, mem_mib=128)
# Emulated hosts are slow.
vm.start(wait=300)
try:
    tell(started={"pid": vm.pid(), "socket": vm.sock, "directory": str(vm.dir), "tap": vm.tap})
    tell(machine_config=vm.machine_config())
    tell(guest=in_guest("busybox", "sh", "-c", "busybox uname -n; busybox nproc"))
    tell(refused=in_guest("busybox", "false"))
    tell(state=state())
    api.request(vm.sock, "PATCH", "/vm", {"state": "Paused"})
    tell(state=state())
    api.request(vm.sock, "PATCH", "/vm", {"state": "Resumed"})
    tell(state=state())
    try:
        api.request(vm.sock, "PUT", "/actions", {"action_type": "InstanceStart"})
    except RuntimeError as error:
        tell(again=str(error))
    tell(guest=in_guest("busybox", "echo", "it's", "still there"))
    vm.stop()
    tell(console=vm.console.read_text())
finally:
    vm.clean()
tell(running=vm.running(), guests=vm.registry.list())
