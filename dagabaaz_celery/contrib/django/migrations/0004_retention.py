"""Deletion of old runs: which are to go and how far that is, and definitions that nothing refers to any more."""

from django.db import migrations

from dagabaaz_celery.contrib.django import fields
from dagabaaz_celery.contrib.django.revisions import RunRevision


class Migration(migrations.Migration):
    """Columns of runs and definitions."""

    dependencies = [("dagabaaz", "0003_undo_and_deadlines")]
    operations = [
        migrations.SeparateDatabaseAndState(
            [RunRevision("0004_0001", before="0003_0001")],
            [
                migrations.AddField("definition", "unused_since", fields.TimeField(null=True)),
                migrations.AddField("run", "pruned_at", fields.TimeField(null=True)),
                migrations.AddField("run", "prune_due_at", fields.TimeField(null=True)),
            ],
        ),
    ]
