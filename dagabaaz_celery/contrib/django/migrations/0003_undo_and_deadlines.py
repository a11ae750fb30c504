"""What happens after a run's end, deadlines of runs and tasks, and tags of runs."""

from django.db import migrations, models

from dagabaaz_celery.contrib.django import fields
from dagabaaz_celery.contrib.django.names import name_table
from dagabaaz_celery.contrib.django.revisions import RunRevision


class Migration(migrations.Migration):
    """Columns of runs and tasks, and a table."""

    dependencies = [("dagabaaz", "0002_lists_of_runs")]
    operations = [
        migrations.SeparateDatabaseAndState(
            [RunRevision("0003_0001", before="0002_0001")],
            [
                migrations.AddField("task", "timeout", models.BigIntegerField(null=True)),
                migrations.AddField("run", "epilogue", models.CharField(max_length=16, null=True)),
                migrations.AddField("run", "timeout", models.BigIntegerField(null=True)),
                migrations.AddField("run", "deadline_at", fields.TimeField(null=True)),
                migrations.CreateModel(
                    name="Tag",
                    fields=[
                        (
                            "id",
                            fields.PairField(
                                editable=False, first="run", primary_key=True, second="name", serialize=False
                            ),
                        ),
                        ("name", models.CharField(max_length=100)),
                        ("value", models.CharField(max_length=200)),
                        (
                            "run",
                            models.ForeignKey(
                                db_column="run_id",
                                db_constraint=False,
                                db_index=False,
                                on_delete=models.DO_NOTHING,
                                related_name="tags",
                                to="dagabaaz.run",
                            ),
                        ),
                    ],
                    options={
                        "db_table": name_table("tag"),
                        "unique_together": {("run", "name")},
                    },
                ),
            ],
        ),
    ]
