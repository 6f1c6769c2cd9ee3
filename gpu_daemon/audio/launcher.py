"""Starts ffmpeg so that it can neither outlive the daemon nor eat the machine.

    python -I -S launcher.py DAEMON_PID MEMORY_BYTES CPU_S FILE_BYTES COMMAND…

A script of its own, run by a fresh interpreter (20 ms), because the other ways are worse: a `preexec_fn` runs Python
between fork and exec of a process with threads, where any lock may be held for ever; `prlimit` and `setpriv` need not
be installed. The limits and the order to die with the daemon survive the exec.
"""

import ctypes
import os
import resource
import signal
import sys

NOT_STARTED = 125
"""Exit status; ffmpeg ends with it too seldom to matter, and what went wrong is on stderr."""
COMPLAINT = "launcher: "
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
NICE = 5
OPEN_FILES = 64


def main() -> None:
    daemon_pid, memory_bytes, cpu_s, file_bytes = (int(number) for number in sys.argv[1:5])
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != daemon_pid:
            sys.exit(NOT_STARTED)  # the daemon died before the order was given
    for limit, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        lowered = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lowered, lowered))
    os.nice(NICE)
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - the arguments are the daemon's own


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.stderr.write(f"{COMPLAINT}{error}\n")
        sys.exit(NOT_STARTED)
