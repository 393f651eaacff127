"""What schemathesis has to know of a monitor: where its socket is, and which state it is to be kept in.

MOTE_SOCKET is the path of the API's socket; MOTE_STATE is the state as `GET /` names it; MOTE_DISK is a file for disks.
"""

import json
import os
import socket

import schemathesis
import urllib3

SOCKET = os.environ["MOTE_SOCKET"]
STATE = os.environ["MOTE_STATE"]
DISK = os.environ["MOTE_DISK"]
# What `PATCH /vm` calls the state that the guest is to be in.
KEPT = {"Running": "Resumed", "Paused": "Paused"}.get(STATE)


class Connection(urllib3.connection.HTTPConnection):
    """A connection to the monitor, whatever host is asked for."""

    def _new_conn(self):
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self.timeout)
            connection.connect(SOCKET)
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, f"{SOCKET}: {error}") from error
        return connection


# What a pool makes its connections of: all of this process, so also those of its probes.
urllib3.HTTPConnectionPool.ConnectionCls = Connection


@schemathesis.hook
def filter_case(context, case):
    """`Stop` and `Reset` end the monitor, as they should."""
    ends = isinstance(case.body, dict) and case.body.get("action_type") in ("Stop", "Reset")
    return not (case.path == "/actions" and ends)


@schemathesis.hook
def map_case(context, case):
    """No path that is made up leads to a file, no tap is there, and the name in the path is never that in the body. So that
    disks and cards come and go, what is well formed gets them."""
    if not (case.meta and case.meta.generation.mode.is_positive and isinstance(case.body, dict)):
        return case
    for name in case.path_parameters or {}:
        if isinstance(case.body.get(name), str):
            case.path_parameters[name] = case.body[name]
    if isinstance(case.body.get("path_on_host"), str):
        case.body["path_on_host"] = DISK
    if case.method == "PUT" and case.path == "/network-interfaces/{iface_id}":
        case.body.pop("host_dev_name", None)
        case.body["backend"] = "user"
    return case


@schemathesis.hook
def before_call(context, case, kwargs):
    """The events have no end: the answer is looked at, and not read."""
    if case.path == "/events":
        kwargs["hooks"] = {"response": leave_stream}


def leave_stream(response, **_):
    if response.headers.get("Transfer-Encoding") == "chunked":
        response._content = b""
        response.close()


@schemathesis.hook
def after_call(context, case, response):
    """Brings a guest back that was paused, or was not to go on."""
    if KEPT is None or case.path != "/vm" or response.status_code != 204:
        return
    with urllib3.HTTPConnectionPool("localhost") as pool:
        back = pool.request("PATCH", "/vm", body=json.dumps({"state": KEPT}))
        assert back.status == 204, back.data
