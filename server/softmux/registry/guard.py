"""The embedded server's parent: starts it, and ends it when no process holds it any more, however those ended.

Run by path, without site packages: `guard.py HOLDERS LOCK_FD SERVER ARG…`. The server and this process both keep
LOCK_FD, so its lock is free exactly when both are gone. HOLDERS is the file on which every holder keeps a shared lock:
to be given an exclusive one means that the last is gone, by a clean end or by SIGKILL.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """In the server's process, before exec: end cleanly should the guard be killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def main() -> int:
    holders, lock, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _die_with(guard)
        os.set_inheritable(lock, True)
        os.execv(command[0], command)  # noqa: S606 - the command is the supervisor's own

    def stop(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(server, signal.SIGTERM)

    def end_with_the_last_holder() -> None:
        with open(holders, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            stop()
            threading.Event().wait()  # the lock stays until this process ends: who comes now waits, then starts anew

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    threading.Thread(target=end_with_the_last_holder, daemon=True).start()
    _, status = os.waitpid(server, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    os._exit(main() & 0xFF)
