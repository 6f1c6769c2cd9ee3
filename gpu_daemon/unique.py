"""Random ids, as `uuid.uuid4` makes them.

That one asks the kernel for each, and lets go of the GIL meanwhile: the event loop then waits until a thread gives it
back.
"""

import os
import uuid

BYTES = 16
AT_ONCE = 256

_unused: list[bytes] = []


def uuid4() -> uuid.UUID:
    """From any thread."""
    try:
        random = _unused.pop()
    except IndexError:
        fresh = os.urandom(BYTES * AT_ONCE)
        random, *others = (fresh[at : at + BYTES] for at in range(0, len(fresh), BYTES))
        _unused.extend(others)
    return uuid.UUID(bytes=random, version=4)
