"""What every program of the project shares: how mistakes of the user are reported, how memory is kept."""

import ctypes
import os
import sys


class UserError(Exception):
    """Something that the user can mend: shown without a traceback, exit code 2."""


def check_new(path):
    """Refuse a path that exists already, or whose folder does not, before any work is done."""
    if os.path.exists(path):
        raise UserError(f"{path} exists: name another file, or remove it first")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UserError(f"{path}: there is no folder {folder}, make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: the folder {folder} cannot be written to, name another one")


def keep_freed_memory():
    """Let the C library keep what is freed, for the next tensor.

    By default glibc gives large blocks back to the system, which must clear each page anew when the next
    tensor touches it: about a sixth of a training step on a CPU. Nothing happens with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4      # from malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def command(main):
    """Run a program's main(argv). A UserError is its message on stderr and exit code 2."""
    keep_freed_memory()
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
