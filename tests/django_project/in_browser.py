"""Pages of runs in a real browser, beside a worker: what changes while one looks, and pictures of them for the docs."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
from django.db import connections
from playwright.sync_api import Browser, Page, expect

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.contrib.django.admin import show
from dagabaaz_celery.run import Run
from dagabaaz_celery.testing import embedded_worker
from tests.browser import PATIENCE, TAKES_PICTURES, open_browser, save_picture
from tests.django_project.gallery import gate
from tests.processes import wait_until

# Playwright keeps an event loop in this thread, in which nothing of Django's runs.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
pytestmark = pytest.mark.timeout(300)
expect.set_options(timeout=PATIENCE)
WIDE = 2_000
#: So many of them are done before the picture is taken.
WIDE_DONE = 1_300 if TAKES_PICTURES else 40
PASSWORD = "open sesame"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing: what a page asks for is of no interest."""


@dataclass
class Site:
    """The project, served to a browser; ``asked`` are the addresses that were asked for."""

    url: str
    browser: Browser
    asked: list[str]

    def open(self, path: str, **options: Any) -> Page:
        """A page in a window of its own; anything that its console complains of fails the test."""
        context = self.browser.new_context(base_url=self.url, viewport={"width": 1400, "height": 900}, **options)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda said: page.complaints.append(said.text) if said.type == "error" else None)
        page.goto(path)
        return page

    def log_in(self, path: str, *permissions: str, **options: Any) -> Page:
        """A page after the login of somebody of the staff who may do this, or everything."""
        name = f"user{User.objects.count()}"
        user = User.objects.create_user(name, password=PASSWORD, is_staff=True, is_superuser=not permissions)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        page = self.open(path, **options)
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        return page


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    asked: list[str] = []
    # SQLite lets one write at a time: pages wait for the worker's writes.
    for connection in connections.all():
        connection.settings_dict["OPTIONS"]["timeout"] = 60
        connection.close()
    serve = StaticFilesHandler(get_wsgi_application())

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        asked.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/favicon.ico":
            start_response("204 No Content", [])
            return []
        return serve(environ, start_response)

    server = make_server("127.0.0.1", 0, application, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with open_browser() as browser:
        yield Site(f"http://127.0.0.1:{server.server_port}", browser, asked)
    server.shutdown()
    thread.join()
    server.server_close()
    connections.close_all()


@contextmanager
def working() -> Iterator[None]:
    """A worker, with the gate closed; at the end nothing waits behind it, whatever became of the test."""
    gate.clear()
    with embedded_worker(dag.app, pool="threads", concurrency=6):
        try:
            yield
        finally:
            dag.app.control.purge()
            gate.set()


def start(count: int, **given: Any) -> Run:
    return dag.start("gallery", {"count": count, **given}, tags={"customer": "West & Co"})


def wait_for_tasks(run: Run, slug: str, **counts: int) -> None:
    """Until a node has that many tasks in these states."""

    def look() -> bool:
        (node,) = [node for node in run.snapshot().nodes if node.slug == slug]
        return {status: node.tasks.get(status, 0) for status in counts} == counts

    wait_until(look, f"{slug} of {run.id} has {counts}", timeout=240)


def test_a_run_is_followed_to_its_end_in_the_admin(site: Site):
    with working():
        failed = start(4, bad=[2])
        failed.wait(60)
        run = start(9, hold_from=5)
        wait_for_tasks(run, "resize", completed=5, running=4)
        wait_for_tasks(run, "date", completed=9)

        page = site.log_in("/admin/dagabaaz/run/")
        row = page.locator("#result_list tbody tr", has_text=run.id)
        expect(row).to_contain_text("running")
        row.get_by_role("link").first.click()
        status = page.locator("#dagabaaz-status")
        expect(status).to_have_text("running")
        expect(page.locator("[data-node=resize] rect.dagabaaz-bar[data-part=completed]")).to_be_visible()
        expect(page.locator("tr[data-node=resize]")).to_contain_text("5 / 9")
        expect(page.get_by_role("link", name="Cancel")).to_be_visible()
        save_picture(page, "admin-running", height=900)

        gate.set()
        expect(status).to_have_text("completed")
        expect(page.locator("#dagabaaz-live")).to_have_attribute("data-dagabaaz-over", "yes")
        expect(page.locator("g[data-node=announce]")).to_have_attribute("data-state", "completed")
        expect(page.get_by_role("link", name="Cancel")).to_have_count(0)
        expect(page.get_by_role("link", name="Roll back")).to_be_visible()
        assert page.complaints == []

        page.goto(show.page_url("run", failed.id))
        expect(page.locator("#dagabaaz-error")).to_contain_text("ValueError: picture 2 is no <b>JPEG</b>")
        traceback = page.locator("#dagabaaz-error pre")
        expect(traceback).to_be_hidden()
        save_picture(page, "admin-failed", height=950)
        page.get_by_text("Traceback", exact=True).click()
        expect(traceback).to_contain_text("Traceback (most recent call last)")
        page.locator("g[data-node=resize] a").click()
        page.get_by_role("link", name="1 failed").click()
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
        assert page.complaints == []


def test_a_wide_run(site: Site):
    with working():
        run = dag.start("wide", {"count": WIDE, "hold_from": WIDE_DONE})
        wait_for_tasks(run, "resize", completed=WIDE_DONE, running=6)
        page = site.log_in(show.page_url("run", run.id), "view_run", "view_task", "cancel_run")
        expect(page.locator("tr[data-node=resize]")).to_contain_text("/ 2,000")
        save_picture(page, "admin-wide", height=900)
        page.locator("tr[data-node=resize]").get_by_role("link", name="queued").click()
        expect(page.locator("#result_list tbody tr")).to_have_count(50)
        assert page.complaints == []
        run.cancel()


def test_runs_are_cancelled_by_those_who_may(site: Site):
    first, second = start(2), start(2)

    page = site.log_in("/admin/dagabaaz/run/", "view_run", "cancel_run")
    page.locator("tr", has_text=first.id).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("cancel")
    page.get_by_role("button", name="Go").click()
    expect(page.locator(".messagelist .success")).to_have_text(f"Run {first.id} was cancelled.")
    assert first.status == "cancelled"

    page.goto(show.page_url("run", second.id))
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#dagabaaz-status")).to_have_text("cancelled")
    assert second.status == "cancelled"

    third = start(2)
    page = site.log_in("/admin/dagabaaz/run/", "view_run")
    expect(page.locator("tr", has_text=third.id)).to_be_visible()
    expect(page.get_by_label("Action:")).to_have_count(0)
    page.goto(show.page_url("run", third.id))
    expect(page.locator("#dagabaaz-status")).to_have_text("running")
    expect(page.get_by_role("link", name="Cancel")).to_have_count(0)
    assert third.status == "running"
    third.cancel()


def test_a_customer_sees_progress_to_the_end(site: Site):
    with working():
        run = start(4, hold_from=2)
        wait_for_tasks(run, "resize", completed=2, running=2)
        wait_for_tasks(run, "date", completed=4)
        page = site.open(f"/watch/{run.id}/?style=list")
        fragment = page.locator(".dagabaaz-progress")
        words = page.get_by_role("status").first
        expect(words).to_have_text("Running: 2 of 5 steps done.")
        node = page.locator("li[data-node=resize]")
        expect(node).to_have_attribute("data-state", "running")
        page.evaluate("addEventListener('dagabaaz:over', event => document.title = event.detail.status)")

        gate.set()
        expect(words).to_have_text("Completed.")
        expect(node).to_have_attribute("data-state", "completed")
        expect(fragment).to_have_attribute("data-dagabaaz-over", "yes")
        expect(page).to_have_title("completed")

    # It asks no more: of two more looks there would be a sign in this while.
    address = f"/runs/{run.id}/progress/"
    before = site.asked.count(address)
    page.wait_for_timeout(1_000)
    assert site.asked.count(address) == before
    assert page.complaints == []


def test_without_scripts_there_is_a_picture(site: Site):
    run = start(2)

    page = site.open(f"/watch/{run.id}/", java_script_enabled=False)

    expect(page.locator("g[data-node=scan]")).to_be_visible()
    expect(page.get_by_role("status").first).to_have_text(re.compile("Running: 0 of 5 steps done."))
    run.cancel()


def test_a_page_whose_address_is_too_old_says_so(site: Site, settings_of_django: Any):
    run = start(2)
    page = site.open(f"/watch/{run.id}/")
    settings_of_django(DAGABAAZ_PROGRESS_MAX_AGE=-1)

    expect(page.locator("[data-dagabaaz-notice]")).to_have_text(
        "This is not kept up to date any more. Load the page again."
    )
    run.cancel()


@pytest.fixture
def settings_of_django() -> Iterator[Any]:
    """Change settings until the end of the test."""
    from django.test import override_settings

    overrides = []

    def change(**values: Any) -> None:
        overrides.append(override_settings(**values))
        overrides[-1].enable()

    yield change
    for override in overrides:
        override.disable()
