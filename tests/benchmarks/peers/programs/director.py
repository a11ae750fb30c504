"""celery-director: a workflow in YAML, on PostgreSQL, a worker of two processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.pop(0)  # this file's own directory, where it has the name of the library
HOME = Path(os.environ["PEER_DIRECTORY"]) / "director"
END = HOME / "end"
BIN = Path(sys.executable).parent
os.environ |= {
    "DIRECTOR_HOME": str(HOME),
    "DIRECTOR_DATABASE_URI": os.environ["PEER_DATABASE"],
    "DIRECTOR_BROKER_URI": os.environ["PEER_REDIS"],
    "DIRECTOR_RESULT_BACKEND_URI": os.environ["PEER_REDIS"],
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}
TASKS = f"""
import time
from pathlib import Path
from director import task

@task(name="WORK")
def work(*args, **kwargs):
    return 1

@task(name="END")
def end(*args, **kwargs):
    Path({str(END)!r}).write_text(str(time.monotonic()))
"""


def tasks_of(kind: str, size: int) -> list:
    if kind == "chain":
        return ["WORK"] * (size - 1) + ["END"]
    return [{"GROUP": {"type": "group", "tasks": ["WORK"] * size}}, "END"]


def make_home(kind: str, size: int) -> None:
    (HOME / "tasks").mkdir(parents=True)
    (HOME / "static").mkdir()
    (HOME / "tasks" / "bench.py").write_text(TASKS)
    workflows = {"bench.SMALL": {"tasks": tasks_of(kind, 3)}, "bench.REAL": {"tasks": tasks_of(kind, size)}}
    (HOME / "workflows.yml").write_text(json.dumps(workflows))  # JSON is YAML
    subprocess.run([BIN / "director", "db", "upgrade"], check=True, capture_output=True)


def run(name: str) -> float:
    from director.builder import WorkflowBuilder
    from director.models.workflows import Workflow

    END.unlink(missing_ok=True)
    began = time.monotonic()
    workflow = Workflow(project="bench", name=name, payload={})
    workflow.save()
    WorkflowBuilder(workflow.id).run()
    while not (END.exists() and END.read_text()):
        time.sleep(0.002)
    return float(END.read_text()) - began


def main() -> None:
    kind, _, size = sys.argv[1].partition("-")
    make_home(kind, int(size))
    worker = subprocess.Popen(
        [BIN / "director", "celery", "worker", "-c", "2", "-l", "ERROR"], stdout=sys.stderr, stderr=sys.stderr
    )
    try:
        from director import create_app

        with create_app(str(HOME)).app_context():
            run("SMALL")
            print(run("REAL"))
    finally:
        worker.terminate()
        worker.wait()


main()
