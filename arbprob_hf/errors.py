"""Wording of one-line errors: shortens values and foreign exceptions."""


def brief(value: object, width: int = 90) -> str:
    """`repr(value)` on one line, its middle left out when longer than `width` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else f"{text[: width // 2 - 2]}...{text[-(width // 2 - 1) :]}"


def reason(error: BaseException, width: int = 110) -> str:
    """What an exception (its innermost cause) says, on one line of at most `width` characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else f"{text[: width - 3]}..."
