"""Whether a process is one of a Django project without our Django app, which has the store share its database.

Django itself is not imported for that: its settings may be what is being read.
"""

import importlib.util
import os
import sys

DJANGO_APP = "dagabaaz_celery.contrib.django"


def lacks_django_app() -> bool:
    """Whether Django is there and its settings are named, and no set-up of it has brought our app."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE") or importlib.util.find_spec("django") is None:
        return False
    registry = sys.modules.get("django.apps")
    return registry is None or not (registry.apps.apps_ready and registry.apps.is_installed(DJANGO_APP))
