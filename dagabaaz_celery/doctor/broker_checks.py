"""Checks of the broker, and of what its settings mean for tasks that take long."""

import re
from collections.abc import Iterator
from importlib.metadata import metadata
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from dagabaaz_celery.brokers.embedded import is_embedded
from dagabaaz_celery.doctor.facts import NOT_INSTALLED, Facts, explain
from dagabaaz_celery.doctor.findings import Check, NotChecked, Said, advise, fail, ok, warn

#: Seconds after which these brokers give a message that is not acknowledged to another worker.
_VISIBILITY = {"redis": 3600.0, "sqs": 1800.0}
#: RabbitMQ closes the channel of a consumer that has not acknowledged a message for so long.
_RABBITMQ_CONSUMER_TIMEOUT = 1800.0
#: Seconds from which on a body is long, where others wait behind it.
_LONG = 60.0


def check_broker(facts: Facts) -> Iterator[Said]:
    """The broker is there, and is one that processes share."""
    if facts.app.conf.task_always_eager:
        yield warn(
            "task_always_eager is on: no broker is used",
            "A run is executed inside start(), in the process that calls it, one task after another. That is for "
            "tests.",
            "app.conf.task_always_eager = False",
        )
        return
    problem = facts.broker_problem
    if problem is not None:
        url = maybe_sanitize_url(str(facts.app.conf.broker_write_url or facts.app.conf.broker_url))  # no password
        if isinstance(problem, NOT_INSTALLED):
            yield fail(
                f"the broker at {url} needs a library that is not installed here: {explain(problem)}",
                "Nothing can be published from this process, and no worker of this installation starts.",
                _how_to_install(_name_transport(facts.app)),
            )
        elif isinstance(problem, KeyError):  # kombu's own word for it
            yield fail(
                f"the broker at {url} cannot be used: {problem.args[0]}",
                "Nothing can be published from this process, and no worker of this app starts.",
                'app.conf.broker_url = "redis://localhost:6379/0"',
            )
        else:
            yield fail(
                f"the broker at {url} cannot be used: {explain(problem)}",
                "Runs can be started and stay where they are: what they owe is published when the broker is back.",
                _how_to_reach(facts.app.connection_for_write()),
            )
    elif facts.broker.transport == "memory":
        yield warn(
            "the broker is memory://, which ends with its process",
            "Worker processes do not get what another process starts. It is for tests with a worker in the process.",
            'app.conf.broker_url = "redis://localhost:6379/0"   # or Dagabaaz.embedded(app), on one machine',
        )
    else:
        yield ok(f"the broker answers ({_name_broker(facts)})")


def _name_transport(app: Celery) -> str:
    """What kind of broker is meant: its library, without which kombu makes no connection, is not asked."""
    url = app.conf.broker_write_url
    first = url[0] if isinstance(url, (list, tuple)) and url else url
    return str(app.conf.broker_transport or urlsplit(str(first or "")).scheme or "amqp").partition("+")[0]


def _how_to_install(kind: str) -> str:
    """The extra that brings the library: ours for Redis, for others kombu's, which is called as its module is."""
    module = TRANSPORT_ALIASES.get(kind, kind).removeprefix("kombu.transport.")
    extra = re.split(r"[.:]", module)[0].lower()
    if extra == "redis":
        return 'pip install "dagabaaz-celery[redis]"'
    if extra in (metadata("kombu").get_all("Provides-Extra") or ()):
        return f'pip install "kombu[{extra}]"'
    return 'app.conf.broker_url = "redis://localhost:6379/0"   # or install what has that module'


def _how_to_reach(connection: Any) -> str:
    kind = str(connection.transport_cls)
    host, port = connection.hostname or "localhost", connection.port
    if kind == "redis":
        return f"redis-cli -h {host} -p {port or 6379} ping   # and compare broker_url"
    return f"nc -vz {host} {port or 5672}   # and compare broker_url"


def _name_broker(facts: Facts) -> str:
    return "embedded, a file" if is_embedded(facts.app) else facts.broker.transport


def check_embedded_hosts(facts: Facts) -> Iterator[Said]:
    """The embedded broker is a file: it is for one machine."""
    if not is_embedded(facts.app):
        yield ok("the broker is a server")
        return
    hosts = sorted({host for worker in facts.living for host in worker.hosts})
    if len(hosts) > 1:
        yield fail(
            f"the broker is a file of Dagabaaz.embedded, and its workers are on {len(hosts)} hosts: {', '.join(hosts)}",
            "Each host has a broker of its own, or one on a network file system whose locks do not hold.",
            'app = Celery("proj", broker="redis://host:6379/0")   # and Dagabaaz(app) in place of Dagabaaz.embedded',
        )
    else:
        yield ok("the broker is a file, and one host uses it")


def _find_longest(facts: Facts) -> tuple[float | None, str]:
    """The longest that a body may take or took lately, and which."""
    longest: tuple[float | None, str] = (None, "")
    for route in facts.routes:
        if route.time_limit is not None and (longest[0] is None or route.time_limit > longest[0]):
            longest = (route.time_limit, f"{route.where} may run for {route.time_limit:g} s")
    for worker in facts.workers:
        limit = worker.report.get("time_limit")
        if isinstance(limit, (int, float)) and (longest[0] is None or limit > longest[0]):
            longest = (limit, f"worker {worker.name} lets tasks run for {limit:g} s (task_time_limit)")
    took = facts.contents.longest_body
    if took is not None and (longest[0] is None or took > longest[0]):
        longest = (took, f"{facts.contents.longest_body_of} took {took:.0f} s")
    return longest


def check_visibility(facts: Facts) -> Iterator[Said]:
    """A message is not given to a second worker while the first still works on it."""
    transport = facts.broker.transport
    if transport == "amqp":
        yield from _check_consumer_timeout(facts)
        return
    default = _VISIBILITY.get(transport.lower())
    if default is None:
        yield ok(f"the broker ({_name_broker(facts)}) gives a message back only when its worker is gone")
        return
    here = (facts.app.conf.broker_transport_options or {}).get("visibility_timeout") or default
    told = {
        worker.name: worker.report.get("visibility_timeout") or default for worker in facts.workers if worker.report
    }
    who, timeout = min({"this process": here, **told}.items(), key=lambda each: each[1])
    longest, what = _find_longest(facts)
    if longest is not None and longest >= timeout:
        unwrapped = sorted({route.task for route in facts.routes if not route.wrapped})
        twice = (
            f" Tasks that are no plugins run twice at once: {', '.join(unwrapped[:5])}."
            if unwrapped
            else " A second body is refused, but its worker's place is taken up, and the message is gone after that."
        )
        yield warn(
            f"the visibility timeout of {who} is {timeout:g} s, and {what}",
            f"The broker gives a message that is not acknowledged by then to another worker.{twice}",
            f'app.conf.broker_transport_options = {{"visibility_timeout": {_round_up(2 * longest)}}}'
            "   # in every process of the app",
        )
    elif len(set(told.values())) > 1:
        yield warn(
            f"workers differ in their visibility timeout: {_list(told)}",
            "The shortest one decides for all: whoever looks first gives the message back.",
            f'app.conf.broker_transport_options = {{"visibility_timeout": {max(told.values()):g}}}',
        )
    else:
        yield ok(f"the visibility timeout is {timeout:g} s{', and ' + what if what else ''}")


def _check_consumer_timeout(facts: Facts) -> Iterator[Said]:
    longest, what = _find_longest(facts)
    if longest is None or longest < _RABBITMQ_CONSUMER_TIMEOUT:
        yield ok(f"no body takes as long as RabbitMQ waits{': ' + what if what else ''}")
        return
    yield warn(
        f"{what}, and RabbitMQ waits {_RABBITMQ_CONSUMER_TIMEOUT:g} s for a message to be acknowledged by default",
        "Plugins acknowledge late. RabbitMQ closes the worker's channel after that time (PRECONDITION_FAILED), and "
        "everything that the worker holds is delivered again.",
        f"rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {_round_up(2 * longest) * 1000}).'"
        f"   # and consumer_timeout = {_round_up(2 * longest) * 1000} in rabbitmq.conf",
    )


def check_redis_memory(facts: Facts) -> Iterator[Said]:
    """A Redis that is full must not throw messages away."""
    if facts.broker.transport != "redis":
        yield ok("the broker is no Redis")
        return
    policy = facts.broker.redis_memory.get("maxmemory_policy")
    if policy is None:
        raise NotChecked("this user may not ask Redis about its memory")
    if policy != "noeviction" and int(facts.broker.redis_memory.get("maxmemory", 0)):
        yield warn(
            f"Redis drops keys when its memory is full (maxmemory-policy {policy})",
            "Keys are queues and messages that a worker holds. What is lost is sent again after a while; messages of "
            "other tasks are gone.",
            "redis-cli CONFIG SET maxmemory-policy noeviction   # and in redis.conf",
        )
    else:
        yield ok(f"Redis keeps its keys when its memory is full (maxmemory-policy {policy})")


def check_prefetch(facts: Facts) -> Iterator[Said]:
    """Short tasks do not wait behind a long one in the memory of its worker."""
    longest, what = _find_longest(facts)
    told = {w.name: w.report.get("prefetch_multiplier") for w in facts.reporting}
    greedy = {name: many for name, many in told.items() if many is not None and (many > 1 or many == 0)}
    if greedy and longest is not None and longest >= _LONG:
        fetched = ", ".join(f"{name} fetches {many or 'any number'} for each" for name, many in greedy.items())
        yield advise(
            f"{what}, and workers fetch messages ahead: {fetched} of its processes",
            "What is fetched waits behind the long body, while other workers are idle.",
            "app.conf.worker_prefetch_multiplier = 1   # or a queue and workers of their own for long tasks",
        )
    else:
        yield ok(f"workers fetch ahead: {_list(told)}; no body is long" if greedy else "workers do not fetch ahead")


def check_acks(facts: Facts) -> Iterator[Said]:
    """A task that is acknowledged before it runs is gone with its worker."""
    facts.routes  # noqa: B018  # raises where plugins cannot be read
    found = 0
    for name in facts.dag.plugin_names():
        plugin = facts.dag._runtime.registry.find(name)
        if plugin is None:
            continue
        task, info = plugin.task, plugin.info
        if not task.acks_late and info.on_lost == "crash":
            found += 1
            yield advise(
                f"task {info.task_name} acknowledges early, and its run crashes when a worker dies in its body",
                "That is right for a body that must not run twice. If it may, have it run again.",
                '@app.task(acks_late=True, reject_on_worker_lost=True)   # or dag.plugin(..., on_lost="rerun")',
            )
        elif task.acks_late and info.on_lost == "rerun" and not task.reject_on_worker_lost:
            found += 1
            yield advise(
                f"task {info.task_name} acknowledges late, and not when its process is killed (reject_on_worker_lost)",
                "Celery then acknowledges the message of a killed process. The task is sent again by the sweep; the "
                "broker would do it at once.",
                "@app.task(acks_late=True, reject_on_worker_lost=True)",
            )
    if not found:
        yield ok("plugins are acknowledged as their bodies allow")


def _round_up(seconds: float) -> int:
    """To whole hours: nobody wants to write 7213."""
    return (int(seconds) // 3600 + 1) * 3600


def _list(values: dict[str, object]) -> str:
    return ", ".join(
        f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}" for name, value in values.items()
    )


CHECKS: tuple[Check[Facts], ...] = (
    Check("broker", "Does the broker answer, and is it one that processes share?", check_broker),
    Check("embedded-hosts", "Is the embedded broker used on one host only?", check_embedded_hosts),
    Check("visibility", "Does the broker wait longer for a message than its body may take?", check_visibility),
    Check("redis-memory", "Does Redis keep messages when its memory is full?", check_redis_memory),
    Check("prefetch", "Do messages wait behind long bodies in the memory of a worker?", check_prefetch),
    Check("acks", "Are tasks acknowledged as their bodies allow?", check_acks),
)
