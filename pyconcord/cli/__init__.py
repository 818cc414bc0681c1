"""The command line: ``pyconcord COMMAND``. Needs the extra ``cli``.

Exit codes, which stay as they are:
  0    done
  1    the answer is no: ``verify`` found an error, ``demo`` a lost edit or a missed premise;
       ``install`` could not make the grants that it was asked for
  2    the command line is wrong, or ``demo`` could not run
  3    no connection to the server, or it was lost
  4    refused by Concord, by this program, or for want of rights; nothing was changed
  5    contended: somebody else's lock was not let go in all the tries
  6    any other error of the server
  130  interrupted
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]


def main() -> None:
    """The entry point ``pyconcord``."""
    try:
        from pyconcord.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"pyconcord: the command line needs {error.name}: pip install 'pyconcord[cli]'")
    # A reader that has seen enough (… | head) is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    app(prog_name="pyconcord")
