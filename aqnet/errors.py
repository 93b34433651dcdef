"""The one exception users see."""

import os
import sys
from collections.abc import Callable


class AqnetError(Exception):
    """A mistake in the input. `run` prints it as one line; the exit status is 2."""


def run(main: Callable[[], int | None]) -> None:
    """Call a command's `main` and exit with its status, or 2 and one line after an `AqnetError`,
    130 and one line after an interrupt (Ctrl-C)."""
    try:
        sys.exit(main() or 0)
    except AqnetError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # 128 + SIGINT; at once: zarr would name each read that it had begun
