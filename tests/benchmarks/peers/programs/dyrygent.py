"""celery-dyrygent: a canvas, driven by a task that looks again and again, on Redis, a worker of two processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery, chain, chord
from celery_dyrygent.tasks import register_workflow_processor
from celery_dyrygent.workflows import Workflow

END = Path(os.environ["PEER_DIRECTORY"]) / "end"
app = Celery("bench", broker=os.environ["PEER_REDIS"], backend=os.environ["PEER_REDIS"])
register_workflow_processor(app)


@app.task(name="work")
def work() -> int:
    return 1


@app.task(name="end")
def end() -> None:
    END.write_text(str(time.monotonic()))


def run(kind: str, size: int) -> float:
    END.unlink(missing_ok=True)
    canvas = (
        chain(*(work.si() for _ in range(size - 1)), end.si())
        if kind == "chain"
        else chord([work.si() for _ in range(size)], end.si())
    )
    began = time.monotonic()
    workflow = Workflow()
    workflow.add_celery_canvas(canvas)
    workflow.apply_async()
    while not (END.exists() and END.read_text()):
        time.sleep(0.002)
    return float(END.read_text()) - began


def main() -> None:
    kind, _, size = sys.argv[1].partition("-")
    command = [sys.executable, "-m", "celery", "-A", "dyrygent", "worker", "-c", "2", "-l", "ERROR"]
    worker = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=sys.stderr, stderr=sys.stderr)
    try:
        run(kind, 2)
        print(run(kind, int(size)))
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
