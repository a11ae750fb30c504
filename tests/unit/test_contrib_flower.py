"""The import that adds runs to Flower, where Flower is not installed."""

import importlib
import sys

import pytest

from dagabaaz_celery.errors import ConfigurationError


def test_without_flower_the_import_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flower", None)
    monkeypatch.delitem(sys.modules, "dagabaaz_celery.contrib.flower", raising=False)

    with pytest.raises(ConfigurationError, match=r"pip install 'dagabaaz-celery\[monitor\]'"):
        importlib.import_module("dagabaaz_celery.contrib.flower")
