"""The bank and the carriers, as far as this example has them: they think for a while, and refuse what is to be refused.

In a real shop these are requests to somebody else's server. Such a server takes an idempotency key, so that a request
that is made twice is carried out once.
"""

import time

from django.conf import settings

#: A bank thinks for a whole pace, a carrier for this part of it.
CARRIER = 0.2
NOWHERE = "nowhere"
EMPTY_CARD = "card-empty"


class Declined(Exception):
    """The bank did not pay."""


class NoSuchPlace(Exception):
    """No carrier goes there."""


def charge_card(card: str, amount: int, *, key: str) -> None:
    """Have the bank take the money, in cents. Raises Declined."""
    time.sleep(settings.SHOP_PACE)
    if card == EMPTY_CARD:
        raise Declined("The bank declined the card.")


def refund_card(*, key: str) -> None:
    """Have the bank give back what it took for this key."""
    time.sleep(settings.SHOP_PACE)


def send_parcel(city: str, *, key: str) -> str:
    """Give a parcel to a carrier; returns what to follow it by. Raises NoSuchPlace."""
    time.sleep(CARRIER * settings.SHOP_PACE)
    if city.strip().lower() == NOWHERE:
        raise NoSuchPlace(f"No carrier goes to {city.strip()}.")
    return f"TEA-{key}"


def recall_parcel(tracking: str) -> None:
    """Have the carrier bring a parcel back."""
    time.sleep(CARRIER * settings.SHOP_PACE)
