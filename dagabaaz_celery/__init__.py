"""DAG pipelines as a feature of an existing Celery app.

Import from submodules: the module path tells where a name lives.
"""

__version__ = "0.1.0"
