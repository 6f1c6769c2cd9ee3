"""Text from outside (a tool's stderr, a receiver's answer) on its way into the database."""


def storable(text: str) -> str:
    """PostgreSQL holds neither U+0000 nor half a surrogate pair; an error message must not fail for them."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
