"""How the store's columns look to Django: ids, times and JSON as the store keeps them, and keys of two columns."""

import json
import uuid
from calendar import timegm
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.expressions import Col
from django.db.models.lookups import Exact, In
from django.utils import timezone

_MICROSECONDS = 1_000_000


class IdField(models.Field):
    """A UUID, as text in Python; in the database uuid, BINARY(16) or a BLOB of 16 bytes."""

    description = "UUID"
    empty_strings_allowed = False

    def db_type(self, connection: Any) -> str:
        """What the store's own schema has."""
        return {"postgresql": "uuid", "mysql": "binary(16)"}.get(connection.vendor, "BLOB")

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> str | None:
        """Canonical text."""
        if value is None:
            return None
        return str(value) if isinstance(value, (str, uuid.UUID)) else str(uuid.UUID(bytes=bytes(value)))

    def to_python(self, value: Any) -> str | None:
        """Canonical text, of a UUID or of any text for one. Raises ValidationError."""
        if value is None:
            return None
        try:
            return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value)))
        except ValueError:
            raise ValidationError(f"{value!r} is no UUID.", code="invalid") from None

    def get_prep_value(self, value: Any) -> str | None:
        """Canonical text."""
        return self.to_python(super().get_prep_value(value))

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """What the driver takes."""
        text = value if prepared else self.get_prep_value(value)
        if text is None:
            return None
        found = uuid.UUID(text)
        return found if connection.vendor == "postgresql" else found.bytes

    def formfield(self, **kwargs: Any) -> Any:
        """A text field."""
        return super().formfield(**{"max_length": 36, **kwargs})


class TimeField(models.DateTimeField):
    """Microseconds since 1970 in the database; a datetime in Python, aware unless USE_TZ is off.

    Lookups that take a date apart (``__year``, ``__date``) do not work; comparisons do.
    """

    description = "Time, by the database's clock"

    def get_internal_type(self) -> str:
        """So that no backend takes the number for one of its own times."""
        return "BigIntegerField"

    def from_db_value(self, value: int | None, expression: Any, connection: Any) -> datetime | None:
        """A datetime."""
        if value is None:
            return None
        seconds, micros = divmod(value, _MICROSECONDS)
        found = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
        return found if settings.USE_TZ else timezone.make_naive(found, timezone.get_default_timezone())

    def get_prep_value(self, value: Any) -> int | None:
        """Microseconds."""
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        found: datetime | None = self.to_python(value)
        if found is None:
            return None
        if timezone.is_naive(found):
            found = timezone.make_aware(found, timezone.get_default_timezone())
        return timegm(found.utctimetuple()) * _MICROSECONDS + found.microsecond

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> int | None:
        """Microseconds."""
        micros: int | None = value if prepared else self.get_prep_value(value)
        return micros


class JsonTextField(models.TextField):
    """JSON that is kept as text, as what it stands for."""

    description = "JSON"

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        """What the text stands for."""
        return None if value is None else json.loads(value)

    def get_prep_value(self, value: Any) -> str | None:
        """The text."""
        return None if value is None else value if isinstance(value, str) else json.dumps(value)

    def to_python(self, value: Any) -> Any:
        """As it is."""
        return value

    def value_to_string(self, obj: Any) -> str:
        """The text."""
        return json.dumps(self.value_from_object(obj))


class PairField(models.Field):
    """A key of two columns as one value, "first:second", for what knows keys of one column only.

    It has no column: it is read as an expression and asked for by its parts, whose index serves. One of the parts never
    has a colon in it: the first, unless ``split_last``.
    """

    description = "Key of two columns"
    empty_strings_allowed = False

    def __init__(self, first: str = "", second: str = "", *, split_last: bool = False, **kwargs: Any) -> None:
        self.first, self.second, self.split_last = first, second, split_last
        super().__init__(**{"primary_key": True, "editable": False, "serialize": False, **kwargs})

    def deconstruct(self) -> Any:
        """With the columns."""
        name, path, args, kwargs = super().deconstruct()
        kwargs |= {"first": self.first, "second": self.second}
        if self.split_last:
            kwargs["split_last"] = True
        return name, path, args, kwargs

    def db_type(self, connection: Any) -> None:
        """No column of its own."""

    def contribute_to_class(self, cls: Any, name: str, private_only: bool = False) -> None:
        """Shown under its name; the expression stands for its column."""
        super().contribute_to_class(cls, name, private_only)
        self.concrete, self.column = True, name

    def get_col(self, alias: str, output_field: Any = None) -> Any:
        """The expression that gives it."""
        return _PairCol(alias, self)

    @property
    def cached_col(self) -> Any:
        """Without an alias for the table."""
        return _PairCol(self.model._meta.db_table, self)

    def to_python(self, value: Any) -> str | None:
        """Text. Raises ValidationError for what is no pair."""
        if value is None:
            return None
        self.split(value)
        return str(value)

    def get_prep_value(self, value: Any) -> str | None:
        """Text."""
        return self.to_python(value)

    def split(self, value: Any) -> tuple[Any, Any]:
        """The two parts, as their fields take them. Raises ValidationError."""
        text = str(value)
        first, colon, second = text.rpartition(":") if self.split_last else text.partition(":")
        if not colon:
            raise ValidationError(f"{text!r} is not of the form {self.first}:{self.second}.", code="invalid")
        one, other = self.part(self.first), self.part(self.second)
        return one.to_python(first), other.to_python(second)

    def part(self, name: str) -> Any:
        """The field of a part; where it refers to another table, that one's key."""
        field = self.model._meta.get_field(name)
        return field.target_field if field.is_relation else field


class _PairCol(Col):
    """The pair, read as text."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        quote, meta = compiler.quote_name_unless_alias, self.target.model._meta
        columns = {
            name: f"{quote(self.alias)}.{connection.ops.quote_name(meta.get_field(name).column)}"
            for name in (self.target.first, self.target.second)
        }
        shown = [
            _as_text(column, connection.vendor) if isinstance(self.target.part(name), IdField) else column
            for name, column in columns.items()
        ]
        if connection.vendor == "mysql":
            return f"CONCAT({shown[0]}, ':', {shown[1]})", []
        return f"({shown[0]} || ':' || {shown[1]})", []


def _as_text(column: str, vendor: str) -> str:
    """An id as the canonical text."""
    if vendor == "postgresql":
        return f"{column}::text"
    digits = f"LOWER(HEX({column}))"
    parts = [f"SUBSTR({digits}, {start}, {length})" for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
    return "CONCAT_WS('-', " + ", ".join(parts) + ")" if vendor == "mysql" else " || '-' || ".join(parts)


class _PairLookup:
    """What asks for pairs asks for their parts."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        field = self.lhs.output_field
        alias, quote = self.lhs.alias, compiler.quote_name_unless_alias
        alternatives: list[str] = []
        parameters: list[Any] = []
        values = self.rhs if isinstance(self.rhs, (list, tuple, set, frozenset)) else [self.rhs]
        for value in values:
            terms = []
            for name, part in zip((field.first, field.second), field.split(value), strict=True):
                column = connection.ops.quote_name(field.model._meta.get_field(name).column)
                terms.append(f"{quote(alias)}.{column} = %s")
                parameters.append(field.part(name).get_db_prep_value(part, connection))
            alternatives.append(f"({' AND '.join(terms)})")
        return f"({' OR '.join(alternatives)})", parameters

    lhs: Any
    rhs: Any


@PairField.register_lookup
class _PairExact(_PairLookup, Exact):
    """``pk=…``"""


@PairField.register_lookup
class _PairIn(_PairLookup, In):
    """``pk__in=[…]``"""
