"""Becomes a program that ends with the daemon: `python -I -S launcher.py DAEMON_PID UID GID PROGRAM ARGUMENT…`.

A program of its own because this must happen between fork and exec, where a process with threads may run no Python.
UID and GID are -1 to stay who we are.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    daemon_pid, uid, gid = (int(number) for number in sys.argv[1:4])
    if uid != -1:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which clears it. SIGINT: PostgreSQL disconnects its clients and shuts down in order.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != daemon_pid:
        sys.exit("the daemon died while its database was being started")
    os.execv(sys.argv[4], sys.argv[4:])  # noqa: S606 - the program is one of ours, no shell


if __name__ == "__main__":
    main()
