"""Runs in Flower: a real Flower beside a real worker, looked at with a real browser.

That Flower has a prefix and a login; another one, without both, has a store that is away.
"""

import base64
import html
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import pytest
from playwright.sync_api import Browser, Page, expect

from dagabaaz_celery.run import Run
from dagabaaz_celery.stores.sql.tables import new_id
from tests.browser import PATIENCE, TAKES_PICTURES, open_browser, save_picture
from tests.integration.film_plugins import declare_film, make_film
from tests.integration.worker_processes import ROOT, Site, open_site
from tests.processes import ProcessTree, wait_until
from tests.servers import LOOPBACK, pick_port

#: Bodies that the worker runs at a time.
CONCURRENCY = 6
#: As many as in the picture take longer than a test may; the table has pages of them all the same.
WIDE = 2_000 if TAKES_PICTURES else 300
LAST = f"{WIDE - 49:,} to {WIDE:,} of {WIDE:,}"


@dataclass
class Flower:
    """A Flower process and where it answers; ``user`` and password are sent where they are set."""

    url: str
    process: ProcessTree
    log: Path
    login: str = ""

    def get(self, path: str, *, login: str | None = None) -> tuple[int, str]:
        """The status and the body of an answer."""
        request = urllib.request.Request(urljoin(self.url, path))
        login = self.login if login is None else login
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def search(self, words: str) -> list[dict[str, Any]]:
        """What the search field of Flower's page of tasks finds."""
        query = {
            "draw": 1,
            "start": 0,
            "length": 100,
            "search[value]": words,
            "order[0][column]": 0,
            "columns[0][data]": "name",
        }
        status, body = self.get(f"tasks/datatable?{urlencode(query)}")
        assert status == 200, body
        return json.loads(body)["data"]


@dataclass
class Studio:
    """A worker, its store, Flower beside it, and one that cannot reach the store."""

    site: Site
    flower: Flower
    blind: Flower
    browser: Browser

    def start(
        self,
        name: str,
        count: int,
        *,
        hold_from: int = 10**9,
        bad: tuple[int, ...] = (),
        tags: dict[str, str] | None = None,
        **render: Any,
    ) -> Run:
        """Start a run of so many frames; ``gate`` is what they wait for, and other fields are of their node."""
        given = {"count": count, "gate": str(self.gate(name)), "hold_from": hold_from, "bad": list(bad)}
        return self.site.dag.start(make_film(name, **render), given, tags={"studio": "West & Co", **(tags or {})})

    def gate(self, name: str) -> Path:
        return self.site.directory / f"gate-{name}"

    def open_page(self, flower: Flower, path: str) -> Page:
        """A page in a browser window of its own."""
        user, _, password = flower.login.partition(":")
        credentials = {"username": user, "password": password} if user else None
        context = self.browser.new_context(viewport={"width": 1280, "height": 1000}, http_credentials=credentials)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(urljoin(flower.url, path))
        return page


def start_flower(site: Site, prefix: str = "", login: str = "", **settings: Any) -> Flower:
    """Start ``celery flower`` with the one import in its configuration file."""
    conf = site.directory / "flowerconfig.py"
    conf.write_text("import dagabaaz_celery.contrib.flower\n")
    port = pick_port()
    log = site.directory / f"flower-{port}.log"
    given = [f"--conf={conf}", f"--port={port}", f"--address={LOOPBACK}"]
    if prefix:
        given.append(f"--url_prefix={prefix}")
    if login:
        given.append(f"--basic_auth={login}")
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.worker_app", "flower", *given]
    process = ProcessTree(command, log=log, cwd=ROOT, env=site.environment(**settings))
    return Flower(f"http://{LOOPBACK}:{port}/{f'{prefix}/' if prefix else ''}", process, log, login)


def wait_for(flower: Flower, *, until_it_hears: bool = True) -> None:
    """Wait until Flower answers, and has an event of the worker: what was sent before, it never sees."""

    def is_there() -> bool:
        assert flower.process.is_running, flower.log.read_text()
        if not until_it_hears:
            return flower.get("healthcheck")[0] == 200
        status, body = flower.get("workers?json=1")
        return status == 200 and any(worker["status"] for worker in json.loads(body)["data"])

    wait_until(is_there, "Flower answers", timeout=90)


def states(page: Page) -> dict[str, str]:
    """The state of each node in the picture, by slug."""
    return page.eval_on_selector_all(
        ".dagabaaz-node", "boxes => Object.fromEntries(boxes.map(box => [box.dataset.node, box.dataset.state]))"
    )


def wait_for_states(page: Page, **wanted: str) -> None:
    wait_until(lambda: wanted.items() <= states(page).items(), f"{wanted} is shown", timeout=60)


def wait_until_seen(flower: Flower, run: Run, wanted: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """What Flower finds by the run's id, once its events have come."""
    wait_until(lambda: wanted(flower.search(run.id)), "Flower has the run's tasks", timeout=60)
    return flower.search(run.id)


def a_run_is_shown_live_with_links_to_its_tasks_and_back(studio: Studio):
    run = studio.start("film", 12, hold_from=8)
    page = studio.open_page(studio.flower, f"task/{run.id}")

    wait_for_states(
        page,
        reserve="completed",
        scan="completed",
        sound="completed",
        render="running",
        subtitles="filtered",
        join="waiting",
        publish="waiting",
        mail="waiting",
    )
    wait_until(lambda: "8 / 12" in page.inner_text("#dagabaaz-graph"), "what is done is counted")
    expect(page.locator("#dagabaaz-status")).to_have_text("running")
    save_picture(page, "flower-running", 1_250)

    # Flower's search finds them by the run's id, under their own names.
    found = wait_until_seen(studio.flower, run, lambda tasks: len(tasks) >= 12)
    assert {task["name"].rpartition(".")[2] for task in found} == {"reserve", "scan", "work", "render"}
    assert {task["root_id"] for task in found} == {run.id}
    assert "'node': 'render'" in next(task["kwargs"] for task in found if task["name"].endswith("render"))

    # To a task, and by its root_id back again.
    attempt = run.tasks(node="render", status="completed")[0].attempt_id
    page.locator(f"a:has-text('{attempt}')").click()
    expect(page.locator("#taskid")).to_have_text(attempt)
    page.locator(f".detail-row a[href$='{run.id}']").first.click()
    expect(page.locator("#dagabaaz-status")).to_have_text("running")

    # The page follows the run to its end, without being loaded again, and looks no more after it.
    page.evaluate("window.neverReloaded = true")
    studio.gate("film").touch()
    wait_for_states(page, render="completed", join="completed", publish="completed")
    expect(page.locator("#dagabaaz-run")).to_have_attribute("data-over", "yes")
    expect(page.locator("#dagabaaz-notice")).to_have_text("The run is over")
    expect(page.locator("#dagabaaz-status")).to_have_text("completed")
    assert page.evaluate("window.neverReloaded") is True


def a_failed_run_shows_why_and_what_was_undone(studio: Studio):
    run = studio.start("film", 12, bad=(5,))
    run.wait(60, rollback=True)

    page = studio.open_page(studio.flower, f"task/{run.id}")

    shown = states(page)
    assert {"reserve": "completed", "render": "failed", "join": "not run", "mail": "completed"}.items() <= shown.items()
    assert "completed, undone" in page.inner_text("#dagabaaz-graph")
    assert "frame 5 has no <colour> profile (node render)" in page.inner_text("#dagabaaz-error")
    expect(page.locator("#dagabaaz-notice")).to_have_text("The run is over")
    page.locator("#dagabaaz-tasks nav a:has-text('failed')").click()
    expect(page.locator("#dagabaaz-tasks nav a.active")).to_contain_text("failed")
    expect(page.locator("#dagabaaz-tasks tr[data-task]")).to_have_count(len(run.tasks(status="failed")))
    expect(page.locator("#dagabaaz-tasks tr[data-status=failed]")).to_have_count(len(run.tasks(status="failed")))
    save_picture(page, "flower-failed", 1_320)
    page.locator("#dagabaaz-error summary").click()
    assert "raise ValueError" in page.inner_text("#dagabaaz-error")


def what_is_no_run_is_left_to_flower(studio: Studio):
    status, body = studio.flower.get(f"task/{new_id()}")
    assert (status, "Unknown task" in body) == (404, True)
    run = studio.start("short", 1)
    run.wait(60)
    assert studio.flower.get(f"task/{run.id}?node=no-such-node")[0] == 404
    assert studio.flower.get(f"task/{run.id}?page=-1&status=nonsense&page=x")[0] == 200


def runs_are_listed_by_pipeline_and_status(studio: Studio):
    run = studio.start("listed", 1)
    run.wait(60)

    page = studio.open_page(studio.flower, "dagabaaz")

    assert page.locator(f"tr[data-run='{run.id}']").count() == 1
    page.locator(f"tr[data-run='{run.id}'] td:nth-child(2) a").click()
    expect(page.locator("tr[data-run]")).to_have_count(1)
    expect(page.locator("tr[data-run]")).to_contain_text("listed")
    page.locator("nav a:has-text('failed')").click()
    expect(page.locator("tbody")).to_contain_text("No such runs.")
    page.go_back()
    page.locator(f"a:has-text('{run.id}')").click()
    expect(page.locator("#dagabaaz-status")).to_have_text("completed")


def the_pages_keep_to_flowers_prefix_and_login(studio: Studio):
    run = studio.start("private", 3, tags={"customer": "<i>Ann</i>"})
    run.wait(60)
    for path in (f"task/{run.id}", f"task/{run.id}?live=1", "dagabaaz", "dagabaaz/"):
        for login in ("", "ann:wrong"):
            status, body = studio.flower.get(path, login=login)
            assert (status, run.id in body) == (401, False), path
        assert studio.flower.get(path)[0] == 200
        assert studio.flower.get(f"/{path}")[0] == 404, "outside of the prefix"

    page = studio.open_page(studio.flower, f"task/{run.id}")
    page.locator(".dagabaaz-node[data-node=scan] a").click()
    expect(page.locator("#dagabaaz-tasks tr[data-task]")).to_have_count(1)
    expect(page.locator("#dagabaaz-summary")).to_contain_text("customer=<i>Ann</i>, studio=West & Co")
    page.locator("a:has-text('All runs')").click()
    expect(page.locator(f"tr[data-run='{run.id}']")).to_have_count(1)
    assert page.url == f"{studio.flower.url}dagabaaz"


def a_store_that_is_away_is_said_on_the_page(studio: Studio):
    wait_for(studio.blind, until_it_hears=False)

    page = studio.open_page(studio.blind, f"task/{new_id()}")

    expect(page.locator("#dagabaaz-problem")).to_contain_text("DGB204 The store's database is away")
    status, body = studio.blind.get("dagabaaz")
    assert (status, "The store's database is away" in html.unescape(body), "hush" in body) == (503, True, False)
    status, body = studio.blind.get(f"task/{new_id()}?live=1")
    assert (status, json.loads(body)["problem"][:31]) == (503, "The store's database is away (c")


def a_wide_run_is_shown_in_pages(studio: Studio):
    hold = Path(f"{studio.gate('feature')}.hold")
    if TAKES_PICTURES:
        bad = tuple(range(3, WIDE, 61))
        run = studio.start("feature", WIDE, bad=bad, max_fan_out=WIDE, on_failure="continue")
        wait_until(lambda: run.snapshot().nodes[3].tasks.get("completed", 0) >= 1_300, "1,300 frames", timeout=400)
        hold.touch()
        wait_until(lambda: run.snapshot().nodes[3].tasks.get("running") == CONCURRENCY, "the others wait")
    else:  # nobody works on that queue: rendering so many takes longer than a test may
        run = studio.start("feature", WIDE, max_fan_out=WIDE, options={"queue": f"later-{new_id()}"})
        wait_until(lambda: run.snapshot().nodes[3].tasks.get("queued") == WIDE, "all are published", timeout=60)

    page = studio.open_page(studio.flower, f"task/{run.id}")
    save_picture(page, "flower-wide", 1_250)

    assert f"/ {WIDE:,}" in page.inner_text("#dagabaaz-graph")
    page.locator(".dagabaaz-node[data-node=render] a").click()
    expect(page.locator("#dagabaaz-tasks nav")).to_contain_text("node render")
    expect(page.locator("#dagabaaz-tasks nav")).to_contain_text(f"All {WIDE:,}")
    expect(page.locator("#dagabaaz-tasks tr[data-task]")).to_have_count(50)
    page.locator("a[rel=next]").click()
    expect(page.locator("#dagabaaz-tasks")).to_contain_text(f"51 to 100 of {WIDE:,}")
    page.goto(urljoin(studio.flower.url, f"task/{run.id}?node=render&page=99999"))
    expect(page.locator("#dagabaaz-tasks")).to_contain_text(LAST)
    expect(page.locator("a[rel=next]")).to_have_count(0)

    # Of this task no worker has sent anything: Flower does not know it, and the page says so.
    page.locator("#dagabaaz-tasks tr[data-task] a code").last.click()
    expect(page.locator("#dagabaaz-problem")).to_contain_text("Flower has seen nothing of this task")
    page.locator("#dagabaaz-problem a").click()
    expect(page.locator("#dagabaaz-tasks nav")).to_contain_text("node render")
    run.cancel()
    expect(page.locator("#dagabaaz-status")).to_have_text("cancelled")
    hold.unlink(missing_ok=True)


SCENARIOS = [
    a_run_is_shown_live_with_links_to_its_tasks_and_back,
    a_failed_run_shows_why_and_what_was_undone,
    what_is_no_run_is_left_to_flower,
    runs_are_listed_by_pipeline_and_status,
    the_pages_keep_to_flowers_prefix_and_login,
    a_store_that_is_away_is_said_on_the_page,
    a_wide_run_is_shown_in_pages,
]


@pytest.mark.timeout(600)
def test_runs_are_seen_in_flower():
    """One test, as a parallel run would start worker, browser and Flower again in each process that gets some."""
    away = f"postgresql+psycopg://postgres:hush@{LOOPBACK}:{pick_port()}/none"
    with open_browser() as browser, open_site(declare_film, worker_send_task_events=True) as site:
        flower = start_flower(site, prefix="ops/tasks", login="ann:s3cret")
        blind = start_flower(site, dagabaaz_store_url=away)
        try:
            site.start_worker(pool="threads", concurrency=CONCURRENCY)
            wait_for(flower)
            for look in SCENARIOS:
                look(Studio(site, flower, blind, browser))
                for window in browser.contexts:
                    window.close()  # a page that is left open goes on asking
        finally:
            flower.process.end()
            blind.process.end()
