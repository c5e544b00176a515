"""Run by path: `leash.py PARENT PROGRAM ARG…` becomes PROGRAM, which gets SIGTERM when PARENT ends, however it does.

Linux alone can do it. The parent's thread that starts this must live as long as the parent.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(sys.argv[1]):
            sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is the caller's own
