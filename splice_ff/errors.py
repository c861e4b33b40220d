"""Every error class. What an `InputError` says, the user can mend: the command line prints it, exit status 2."""

from __future__ import annotations


class InputError(ValueError):
    """An input cannot be used; the message is one line that names it and says what to do."""

    def __init__(self, message: str) -> None:
        # A file name, or a library's own message, may hold line breaks and what a terminal takes for commands.
        super().__init__(printable(message))


class ImageError(InputError):
    """An image cannot be read or written."""


class VideoError(InputError):
    """A video cannot be read or written."""


class CheckpointError(InputError):
    """A file of weights or of appearance tokens is missing, damaged, or of another kind."""


class WeightsError(InputError):
    """A backbone's weights are missing, damaged, or another model's."""


class HubError(WeightsError):
    """A file is neither in the hub's cache nor can it be downloaded."""


class DivergedError(RuntimeError):
    """The losses are no longer finite. The best result so far is kept."""


def printable(text: str) -> str:
    """A text in one line; characters that are no text, such as a terminal's control characters, as \\x1b."""
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
