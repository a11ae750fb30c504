"""The project's Celery app, as in any Django project; dagabaaz_celery.contrib.django finds it by its place.

celery -A shop worker
"""

import os

from celery import Celery
from django.conf import settings

from dagabaaz_celery.brokers import embedded

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# No server for a first try: the broker is a file. Remove this, and set CELERY_BROKER_URL, to use Redis or RabbitMQ.
embedded.configure(app, settings.STATE)
