"""A process that starts a run, or cancels one, as a web view does, and may die at it: its environment is a worker's.

python -m tests.faults.client start KEY COUNT
python -m tests.faults.client cancel RUN_ID
"""

import sys

from tests.faults.app_under_test import make_dag, open_dag

if __name__ == "__main__":
    dag = open_dag(make_dag)
    if sys.argv[1] == "start":
        dag.start("pairs", {"count": int(sys.argv[3])}, key=sys.argv[2])
    else:
        dag.run(sys.argv[2]).cancel()
