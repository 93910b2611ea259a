"""Errors that are shown to the user. Each is one line, and has the exit code of the process."""


class PgcliError(Exception):
    """An error with a message for the user: the command prints it on one line, without a traceback."""

    exit_code = 1


class InputError(PgcliError):
    """Input refused before anything is written: a config, an argument, a path."""

    exit_code = 2


class RunError(PgcliError):
    """A failure while running: the run is marked `failed` and its last good checkpoint is kept."""


USER_ERRORS = (Exception, SystemExit)
"""What user code may raise. A `sys.exit(0)` in it would else end the run as if all were well."""


def one_line(error: BaseException) -> str:
    """The kind of an error, and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
