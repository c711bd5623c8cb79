"""The one exception that means "the user's input is wrong"."""


class InputError(ValueError):
    """Bad input: a file, column, config value or checkpoint that cannot be used.

    The message is one clear sentence (what is wrong, where, what to do next). The command line prints it without a
    traceback and exits with code 2.
    """
