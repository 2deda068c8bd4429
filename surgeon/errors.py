"""The errors that reach the user, each as one line on stderr."""


class SurgeonError(Exception):
    """Something the user can act on: `str()` is one line naming the file, the tensor, what was found and what to do."""

    exit_code = 1


class DiskFull(SurgeonError):  # noqa: N818 - reads as the state it names
    """A file could not be written for want of space or quota."""


class UsageError(SurgeonError):
    """The command line itself is wrong."""

    exit_code = 2


class Cancelled(SurgeonError):  # noqa: N818 - nothing is wrong, the user asked for it
    """The user stopped a running job; nothing was left behind."""

    exit_code = 130
