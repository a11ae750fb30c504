"""The Celery side: plugins, publishing, outcomes, signals and the sweep."""
