"""Lists of runs, newest first: indexes alone."""

from django.db import migrations

from dagabaaz_celery.contrib.django.revisions import RunRevision


class Migration(migrations.Migration):
    """Indexes, which the models do not show."""

    dependencies = [("dagabaaz", "0001_initial")]
    operations = [RunRevision("0002_0001", before="0001")]
