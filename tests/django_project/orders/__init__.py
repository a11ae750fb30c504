"""An app of the project, with plugins in ``tasks`` and in ``pipelines``."""
