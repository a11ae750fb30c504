"""Runs in Flower: ``import dagabaaz_celery.contrib.flower`` in ``flowerconfig.py``, or in the module behind ``-A``.

A run's page is where Flower's pages of its tasks link ``root_id`` to: ``/task/<run id>``. ``/dagabaaz`` lists runs.
"""

from dagabaaz_celery.errors import ConfigurationError

try:
    from flower import urls
except ImportError as error:
    raise ConfigurationError(
        "dagabaaz_celery.contrib.flower shows runs in Flower, which is not installed here: pip install "
        "'dagabaaz-celery[monitor]', or import it only where Flower runs, in flowerconfig.py."
    ) from error

from dagabaaz_celery.contrib.flower.handlers import HANDLERS

# Before Flower's own page of a task, which takes any id. Flower makes its application of this list later.
urls.handlers[:0] = HANDLERS
