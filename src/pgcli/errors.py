"""What a user may read when something is wrong. Each error is one line, and knows the exit code of the process."""


class PgcliError(Exception):
    """An error with a message for the user: the command prints it on one line, without a traceback."""

    exit_code = 1


class InputError(PgcliError):
    """Input refused before anything is written: a config, an argument, a path."""

    exit_code = 2


class RunError(PgcliError):
    """A failure while running: the run is marked `failed` and its last good checkpoint is kept."""
