"""The one exception users see."""

import argparse
import errno
import os
import select
import sys
import threading
from collections.abc import Callable

# a folder that is a file, no permission, a full disk: of the user's place, not of the program
_REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}


class AqnetError(Exception):
    """A mistake in the input. `run` prints it as one line; the exit status is 2."""


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and at most 300 characters long."""
    return " ".join(str(error).split())[:300]


def at_least(minimum: int) -> Callable[[str], int]:
    """A `type` of argparse: whole numbers from `minimum` on."""

    def number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least {minimum}")
        return int(text)

    return number


def _say_in_thread(error: threading.ExceptHookArgs) -> None:
    """A full disk met by a library's thread is one line; the main thread meets it too."""
    if isinstance(error.exc_value, OSError) and error.exc_value.errno in _REFUSALS:
        print(f"warning: {one_line(error.exc_value)}", file=sys.stderr, flush=True)
    else:
        threading.__excepthook__(error)


def _output_is_broken() -> bool:
    """Whether nobody reads the pipe that is standard output any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


def _output_is_refused() -> bool:
    """Whether the file that is standard output takes no more, not even an empty line."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Let go what standard output did not take, which Python would write again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Callable[[], int | None]) -> None:
    """Call a command's `main` and exit with its status, or 2 and one line after an `AqnetError` or
    where the file system refuses a path or the output or nobody reads that any more, 130 and one
    line after an interrupt (Ctrl-C)."""
    threading.excepthook = _say_in_thread
    try:
        try:
            status: str | int | None = main() or 0
        except SystemExit as end:  # of argparse, which may have printed help
            status = end.code
        sys.stdout.flush()
        sys.exit(status)
    except AqnetError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        if not _output_is_broken():
            raise
        print("error: what read the output has ended", file=sys.stderr, flush=True)
        _drop_output()
        sys.exit(2)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        name = error.filename
        if name is None:  # a write names no file itself
            if not _output_is_refused():
                raise
            _drop_output()
            name = "standard output"
        print(f"error: {name}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # 128 + SIGINT; at once: zarr would name each read that it had begun
