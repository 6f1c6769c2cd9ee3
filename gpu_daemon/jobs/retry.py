"""When to try again (pure: no clock, no sleep)."""

import random

# Standard Webhooks 1.0 recommends this schedule; about 72 hours in all.
CALLBACK_DELAYS_S = (5, 30, 300, 1800, 7200, 18000, 36000, 50400, 72000, 72000)
JITTER = 0.1


def callback_delay_s(attempts: int, rng: random.Random) -> float | None:
    """Seconds to wait after the `attempts`-th failed delivery (from 1); None: give up."""
    if attempts > len(CALLBACK_DELAYS_S):
        return None
    return CALLBACK_DELAYS_S[attempts - 1] * rng.uniform(1 - JITTER, 1 + JITTER)


def backoff_s(failures: int, *, first_s: float, most_s: float, rng: random.Random) -> float:
    """Exponential back-off with jitter: `first_s` after the first failure, doubled each time up to `most_s`."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30)) * rng.uniform(1 - JITTER, 1)
