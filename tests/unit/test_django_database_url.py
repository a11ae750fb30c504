"""A store URL from an entry of Django's DATABASES."""

import sys
from typing import Any

import pymysql
import pytest

pytest.importorskip("django")

from dagabaaz_celery.contrib.django.database_url import build_url, is_in_memory
from dagabaaz_celery.errors import ConfigurationError

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}
MYSQL = {"ENGINE": "django.db.backends.mysql", "NAME": "shop"}


@pytest.fixture(autouse=True)
def mysql_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyMySQL in mysqlclient's place, as PyMySQL itself offers it."""
    monkeypatch.setitem(sys.modules, "MySQLdb", pymysql)


def render(settings: dict[str, Any], **options: Any) -> str:
    return build_url({**settings, "OPTIONS": options}).render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/db.sqlite3"}, {}, "sqlite:////srv/db.sqlite3"),
        (
            {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/db.sqlite3"},
            {"timeout": 20, "transaction_mode": "IMMEDIATE"},
            "sqlite:////srv/db.sqlite3?timeout=20",
        ),
        (POSTGRESQL, {}, "postgresql+psycopg:///shop"),
        (
            {**POSTGRESQL, "USER": "me", "PASSWORD": "p@ss/word", "HOST": "db", "PORT": "6432"},
            {},
            "postgresql+psycopg://me:p%40ss%2Fword@db:6432/shop",
        ),
        ({**POSTGRESQL, "HOST": "/run/pg"}, {}, "postgresql+psycopg:///shop?host=%2Frun%2Fpg"),
        ({**POSTGRESQL, "ENGINE": "django.contrib.gis.db.backends.postgis"}, {}, "postgresql+psycopg:///shop"),
        (
            POSTGRESQL,
            {"sslmode": "verify-full", "isolation_level": 3, "pool": True, "server_side_binding": True},
            "postgresql+psycopg:///shop?sslmode=verify-full",
        ),
        (
            {"ENGINE": "django.db.backends.postgresql", "NAME": ""},
            {"service": "shop", "passfile": ".pgpass"},
            "postgresql+psycopg://?passfile=.pgpass&service=shop",
        ),
        (
            POSTGRESQL,
            {"assume_role": "writer", "options": "-c search_path=a"},
            "postgresql+psycopg:///shop?options=-c+search_path%3Da+-c+role%3Dwriter",
        ),
        ({**MYSQL, "USER": "me", "HOST": "db"}, {}, "mysql+pymysql://me@db/shop?charset=utf8mb4"),
        (
            {**MYSQL, "HOST": "/run/my.sock"},
            {"charset": "utf8", "isolation_level": "read committed"},
            "mysql+pymysql:///shop?charset=utf8&unix_socket=%2Frun%2Fmy.sock",
        ),
        (
            MYSQL,
            {"ssl": {"ca": "/ca.pem"}, "init_command": "SET x=1"},
            "mysql+pymysql:///shop?charset=utf8mb4&init_command=SET+x%3D1&ssl_ca=%2Fca.pem",
        ),
    ],
)
def test_a_database_has_its_url(settings: dict[str, Any], options: dict[str, Any], expected: str):
    assert render(settings, **options) == expected


def test_mysqlclient_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", type(sys)("MySQLdb"))

    assert render(MYSQL).startswith("mysql+mysqldb://")


@pytest.mark.parametrize("name", [":memory:", "file:memorydb_default?mode=memory&cache=shared", ""])
def test_a_database_in_memory_is_known(name: str):
    assert is_in_memory(build_url({"ENGINE": "django.db.backends.sqlite3", "NAME": name}))
    assert not is_in_memory(build_url({"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/db.sqlite3"}))


def test_a_database_that_cannot_have_the_store_is_refused():
    with pytest.raises(ConfigurationError, match="DAGABAAZ_DATABASE"):
        build_url({"ENGINE": "django.db.backends.oracle", "NAME": "shop"})
