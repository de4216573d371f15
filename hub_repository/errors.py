"""What goes wrong with files, said to the user in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

# Characters of a message that are shown: what a damaged file holds may have millions.
LONGEST_MESSAGE = 1500


class RepositoryError(Exception):
    """One sentence that says what is wrong and what to do.

    It may quote what a damaged file holds: line breaks, characters that cannot be printed and
    what is too long to read are taken out.
    """

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        printable = (
            character if character.isprintable() or character.isspace() else repr(character)[1:-1]
            for character in message
        )
        super().__init__(" ".join("".join(printable).split()))


@contextmanager
def library_errors(sentence: str) -> Iterator[None]:
    """Whatever a library raises on a damaged file, as one sentence that ends with its reason."""
    try:
        yield
    except RepositoryError:
        raise
    except BaseException as error:
        # Libraries written in Rust panic on some files, and a panic is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error) or type(error).__name__
        raise RepositoryError(f"{sentence}: {reason.rstrip('.')}.") from error
