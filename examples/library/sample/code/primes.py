"""Primes, by crossing out."""

from collections.abc import Iterator


def primes_below(limit: int) -> Iterator[int]:
    """Every prime below the limit, in order."""
    crossed = bytearray(limit)
    for number in range(2, limit):
        if not crossed[number]:
            yield number
            crossed[number * number :: number] = b"\1" * len(range(number * number, limit, number))


if __name__ == "__main__":
    print(*primes_below(100))
