"""What worker processes declare for tests of signatures as callbacks: one dies after it has sent, once."""

import os
import signal
from typing import Any

from celery import Task

from dagabaaz_celery.app import Dagabaaz
from tests.integration.shop_plugins import write_line


def declare_notified(dag: Dagabaaz) -> None:
    """A plugin, a task that is sent at the end of each run, and a worker that dies before it has noted that it was."""

    @dag.plugin
    def work() -> int:
        return 7

    @dag.app.task(bind=True, acks_late=True, name="notify", shared=False)
    def notify(self: Task, run_id: str, greeting: str) -> None:
        write_line(str(dag.settings.files_dir / "notified"), run_id, greeting, self.request.id)

    # A worker that is killed keeps what it took from the broker: this is for another one.
    dag.on_run_completed(notify.s("well").set(queue="notices"))
    settle = dag._runtime.store.settle_owed

    def settle_or_die(owed: Any) -> None:
        deadly = dag.settings.files_dir / "deadly"
        if owed.kind == "callback" and deadly.exists():
            deadly.unlink()
            # In a child the main process as well: nobody is left to finish what was begun.
            if not dag._runtime.has_sweep:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        settle(owed)

    dag._runtime.store.settle_owed = settle_or_die  # type: ignore[method-assign]
