"""The app of the processes that test the command line: worker and client share the folder that they are started in."""

from pathlib import Path

from tests.integration.cli_support import make_dag

dag = make_dag(Path(".dagabaaz"))
app = dag.app
