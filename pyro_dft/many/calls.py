"""How many requests go into one call: of few sizes, so that few programs are compiled, and with little that nobody asked for."""

from __future__ import annotations

# Sizes of calls differ by this factor. A call is filled up to the next size where more than a share of it is asked for.
STEP, LEAST_SHARE = 8, 4
# Fits in progress at once: at least, and at most; and coordinates of all of them together, each of which takes some 0.8 MB, for
# states of 64 chains and their scores.
LEAST_WIDTH, MOST_WIDTH, MOST_COORDINATES = 4, 128, 1250


def width(dim: int, at_once: int) -> int:
    """Fits in progress at once.

    Args:
        dim: Coordinates of each.
        at_once: How many are evaluated together; twice as many keep calls full.
    """
    wanted = min(MOST_WIDTH, max(32, 2 * at_once))
    return max(LEAST_WIDTH, min(wanted, MOST_COORDINATES // dim))


def spans(count: int, largest: int) -> list[tuple[int, int]]:
    """Where each call begins, and its size: together they hold `count` requests, the last of them perhaps more.

    Args:
        count: Requests.
        largest: The largest size.
    """
    sizes = [max(1, largest)]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // STEP))
    out, at = [], 0
    while at < count:
        left = count - at
        size = next((s for s in sizes[::-1] if s >= left > s / LEAST_SHARE), 0)
        size = size or next(s for s in sizes if s <= left)
        out.append((at, size))
        at += size
    return out
