"""What goes wrong in a conversion, said to the user."""


class ConversionError(Exception):
    """One sentence that says what is wrong and what to do."""
