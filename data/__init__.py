"""What every program shares: how flags are read, how the user's mistakes are reported, how memory is kept."""

import argparse
import ctypes
import difflib
import os
import sys


class UserError(Exception):
    """Something that the user can mend: shown as one line without a traceback, exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse, but without abbreviations, and whatever is wrong with the flags is a UserError."""

    def __init__(self, description, **more):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message):
        raise UserError(message)

    def parse_args(self, argv):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            given = unknown[0].split("=")[0]
            near = [name for name in known if name.startswith(given)]
            near += difflib.get_close_matches(given, known, 1)
            hint = f"did you mean {near[0]}?" if near else "--help lists all"
            raise UserError(f"unknown flag {unknown[0]}, {hint}")
        return args


def check_new(path):
    """Refuse a path that exists already, or whose folder does not, before any work is done."""
    if os.path.exists(path):
        raise UserError(f"{path} exists: name another file, or remove it first")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"{path}: there is no folder {folder} that can be written to: make it first")


def keep_freed_memory():
    """Let the C library keep what is freed, for the next tensor.

    By default glibc gives large blocks back to the system, which must clear each page anew when the next
    tensor touches it: more than a tenth of a training step on a CPU. Nothing happens with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4      # from malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def command(main):
    """Run a program's main(argv). A UserError is its message on stderr and exit code 2; so is a function that
    a student has not written yet (NotImplementedError, see assignment/)."""
    keep_freed_memory()
    try:
        main(sys.argv[1:])
    except (UserError, NotImplementedError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:              # Ctrl-C
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
