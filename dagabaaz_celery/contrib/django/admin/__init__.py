"""Pipelines in Django's admin: what there is to see of them, and what may be done to runs."""

from django.contrib import admin

from dagabaaz_celery.contrib.django.admin.parts import ArtifactAdmin, NodeAdmin, TaskAdmin
from dagabaaz_celery.contrib.django.admin.pipelines import PipelineAdmin
from dagabaaz_celery.contrib.django.admin.runs import RunAdmin
from dagabaaz_celery.contrib.django.models import Artifact, Node, Pipeline, Run, Task

__all__ = ["ArtifactAdmin", "NodeAdmin", "PipelineAdmin", "RunAdmin", "TaskAdmin"]

admin.site.register(Artifact, ArtifactAdmin)
admin.site.register(Node, NodeAdmin)
admin.site.register(Pipeline, PipelineAdmin)
admin.site.register(Run, RunAdmin)
admin.site.register(Task, TaskAdmin)
