"""How the shop writes money."""

from django import template

register = template.Library()


@register.filter
def euros(cents: int) -> str:
    """1234 cents as ``€12.34``."""
    return f"€{cents // 100:,}.{cents % 100:02}"
