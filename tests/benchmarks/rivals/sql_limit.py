"""The SQL limit: bare tasks whose bodies keep a barrier by hand, by the statements of ``barrier``."""

from dagabaaz_celery.stores.sql.tables import new_id
from tests.benchmarks.barrier import open_barrier
from tests.benchmarks.barrier.base import Barrier, Row
from tests.benchmarks.rivals import Side, Surroundings
from tests.benchmarks.shapes import BY_NAME, Shape


class SqlLimit:
    """Every shape as stages: the last task of one launches the next, and publishes it."""

    name = "sql limit"
    side: Side = "plain"

    def __init__(self, around: Surroundings) -> None:
        self._around, self._app, stamps = around, around.app, around.stamps
        self._opened: Barrier | None = None

        @self._app.task(name="limit.work", shared=False, bind=True)
        def work(task, task_id: str, run_id: str, stage: int, sample: int, shape: str) -> None:
            token, barrier = new_id(), self._barrier()
            if not barrier.claim(task.request.id, token):
                return
            stamps.write(sample, stage)
            done = barrier.complete(Row(task_id, run_id, stage, task.request.id), token, '{"n": 1}')
            stages = BY_NAME[shape].stages
            if done == stages[stage] and stage + 1 < len(stages):
                self._publish(barrier.launch(run_id, stage + 1, stages[stage + 1]), sample, shape)

        self._work = work

    def _barrier(self) -> Barrier:
        if self._opened is None:  # in the process that uses it: none is inherited by a fork
            self._opened = open_barrier(self._around.database_url, self._around.note)
        return self._opened

    def _publish(self, rows: list[Row], sample: int, shape: str) -> None:
        with self._app.producer_or_acquire() as producer:
            for row in rows:
                self._work.apply_async(
                    (row.task_id, row.run_id, row.stage, sample, shape),
                    task_id=row.attempt_id,
                    producer=producer,
                    add_to_parent=False,
                )

    def can_do(self, shape: Shape) -> bool:
        return True

    def bodies(self, shape: Shape) -> int:
        return shape.runs * sum(shape.stages)

    def prepare(self, shape: Shape, sample: int) -> None:
        if shape.kind == "noop":
            self._publish(self._barrier().start(shape.stages), sample, shape.name)

    def start(self, shape: Shape, sample: int) -> None:
        if shape.kind != "noop":
            for _ in range(shape.runs):
                self._publish(self._barrier().start(shape.stages), sample, shape.name)

    def settle(self, timeout: float) -> None:
        """The last outcome is all that is left."""

    def abandon(self) -> None:
        """The messages are purged with the workers' end."""
