"""What the engine and the validation know of a plugin, without knowing Celery."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from dagabaaz_celery.constants import BindingSource, FanMode


class PluginInputMeta(BaseModel):
    """One input that a plugin declares for the pipeline's input form."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    source: BindingSource = BindingSource.RUNTIME
    required: bool = False
    placeholder: str = ""


@runtime_checkable
class PluginMeta(Protocol):
    """What a plugin must say of itself for a pipeline's input schema."""

    @property
    def name(self) -> str: ...
    @property
    def worker_only(self) -> bool: ...
    def get_effective_inputs(self) -> Sequence[PluginInputMeta]: ...


PluginLookup = Callable[[str], PluginMeta | None]


class PluginInfo(BaseModel):
    """What validation needs of a plugin that this process knows.

    ``name`` is how pipelines call it, ``task_name`` the Celery task behind it. ``fan_mode`` is the default for
    nodes that leave theirs unset. ``takes_artifacts`` tells that the body names a parameter ``artifacts``.
    ``wrapped`` is False for a task that runs by Celery's signals alone. ``options`` are the Celery publish options
    that the plugin declares; ``on_lost`` says what to do when a worker dies in its body.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    task_name: str
    fan_mode: FanMode | None = None
    passthrough: bool = False
    takes_artifacts: bool = False
    worker_only: bool = False
    inputs: tuple[PluginInputMeta, ...] = ()
    wrapped: bool = True
    options: dict[str, Any] = {}
    on_lost: Literal["rerun", "crash"] = "rerun"

    def get_effective_inputs(self) -> Sequence[PluginInputMeta]:
        """The declared inputs (see PluginMeta)."""
        return self.inputs


class PluginCatalog(Protocol):
    """The plugins that a pipeline is checked against; ``find`` is a PluginLookup too."""

    def find(self, name: str) -> PluginInfo | None: ...

    def names(self) -> Iterable[str]:
        """Every known name, to suggest the closest one."""
        ...
