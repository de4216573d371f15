"""What goes wrong in a conversion, said to the user."""


class ConversionError(Exception):
    """One sentence that says what is wrong and what to do.

    It may quote what a damaged file holds: line breaks and characters that cannot be printed are taken out.
    """

    def __init__(self, message: str):
        super().__init__(
            " ".join(message.encode("utf-8", "backslashreplace").decode("utf-8").split())
        )
