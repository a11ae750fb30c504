"""How values look in the admin: a state with its shape, a bar, a time, JSON, an error with its traceback folded."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from dagabaaz_celery.drawing import format_seconds, to_icon

#: Characters of a value that a page shows: what is longer is nothing to read in a browser.
MAX_SHOWN = 20_000
NOTHING = "—"


def state(word: str, more: str = "") -> SafeString:
    """A state: its shape, its word, and what else there is to say of it."""
    icon = mark_safe(to_icon(word))  # noqa: S308  # drawn here, of fixed parts
    return format_html('<span class="dagabaaz-state">{}<span>{}{}</span></span>', icon, word, more)


def bar(done: int, total: int) -> SafeString:
    """How many of how many."""
    return format_html(
        '<span class="dagabaaz-count"><progress max="{}" value="{}" aria-hidden="true"></progress> '
        "<span>{} / {}</span></span>",
        max(total, 1),
        done,
        f"{done:,}",
        f"{total:,}",
    )


def when(moment: datetime | float | None) -> str:
    """A time, in the time zone that Django shows times in."""
    if moment is None:
        return NOTHING
    zone = timezone.get_current_timezone()
    found = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, tz=zone)
    local = found.astimezone(zone) if timezone.is_aware(found) else found
    return local.strftime("%Y-%m-%d %H:%M:%S")


def took(start: datetime | None, end: datetime | None) -> str:
    """How long something took."""
    return NOTHING if start is None or end is None else format_seconds(max(0.0, (end - start).total_seconds()))


def as_json(value: Any) -> SafeString:
    """A value as JSON; folded where it is long."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False)
    block = format_html('<pre class="dagabaaz-text">{}</pre>', _cut(text))
    if text.count("\n") < 25:
        return block
    return format_html("<details><summary>{} characters</summary>{}</details>", f"{len(text):,}", block)


def as_error(stored: Mapping[str, Any] | None) -> SafeString | str:
    """An error as a run or a task keeps it."""
    if not stored:
        return NOTHING
    line = format_html('<strong class="dagabaaz-error">{}</strong>', _cut(error_line(stored)))
    if not stored.get("traceback"):
        return line
    return format_html(
        '{}<details><summary>Traceback</summary><pre class="dagabaaz-text">{}</pre></details>',
        line,
        _cut(stored["traceback"]),
    )


def error_line(stored: Mapping[str, Any] | None) -> str:
    """An error in one line; a run's names its node."""
    if not stored:
        return ""
    of = "rollback of node" if stored.get("rollback") else "node"
    place = f" ({of} {stored['node']})" if stored.get("node") else ""
    return ": ".join(part for part in (stored.get("type"), stored.get("message")) if part) + place


def page_url(model: str, key: Any) -> str:
    """The address of a row's page."""
    return str(reverse(f"admin:dagabaaz_{model}_change", args=[quote(key)]))


def list_url(model: str, **chosen: Any) -> str:
    """The address of a list, filtered."""
    query = urlencode({name: value for name, value in chosen.items() if value is not None})
    return str(reverse(f"admin:dagabaaz_{model}_changelist")) + (f"?{query}" if query else "")


def link(url: str, text: Any) -> SafeString:
    """A link."""
    return format_html('<a href="{}">{}</a>', url, text)


def page_link(model: str, key: Any, text: Any = None) -> SafeString | str:
    """A link to a row's page, or a dash without one."""
    return NOTHING if key is None else link(page_url(model, key), key if text is None else text)


def _cut(text: str) -> str:
    text = str(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\n… and {len(text) - MAX_SHOWN:,} characters more"
