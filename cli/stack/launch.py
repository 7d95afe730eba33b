"""A script that starts another program in its own process, which ends when the parent does.

Run with `python -I -S`. It changes to a user, asks the kernel for a signal at the parent's death
(in this order, for a change of user would cancel that), and calls exec. The pid stays the same.
`launch_argv` makes the command line.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that a program runs as."""

    uid: int
    gid: int


def launch_argv(
    argv: Sequence[str],
    *,
    account: Account | None = None,
    parent_signal: signal.Signals = signal.SIGTERM,
) -> list[str]:
    """The command line that runs `argv` through this script, as a child of this process."""
    user = f"{account.uid}:{account.gid}" if account else "-"
    script = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
    return [*script, str(os.getpid()), str(int(parent_signal)), user, *argv]


def main(arguments: list[str]) -> None:
    parent, number, user, *argv = arguments
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o077)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit("the parent ended before the program began")
    # Python ignores these two signals, and exec would keep that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
