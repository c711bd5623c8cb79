"""The two exceptions that the command line turns into exit codes."""


class InputError(ValueError):
    """Bad input: a file, column, config value or checkpoint that cannot be used.

    The message is one clear sentence (what is wrong, where, what to do next). The command line prints it without a
    traceback and exits with code 2.
    """


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, saved, and can go on
    """A signal stopped the run after it saved. The command line exits with code 75."""
