"""Errors that a user can mend. The command line prints their one line and exits with 2."""


class InputError(ValueError):
    """An input cannot be used; the message names it and says what to do."""
