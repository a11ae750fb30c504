"""The admin, forms and the progress of runs, as a browser's requests see them."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django import forms
from django.contrib.admin.utils import unquote
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.django import dag, models
from dagabaaz_celery.contrib.django.admin import base, show
from dagabaaz_celery.contrib.django.forms import PipelineForm, pipeline_form
from dagabaaz_celery.contrib.django.progress import may_see_run
from dagabaaz_celery.contrib.django.project import get_alias
from dagabaaz_celery.errors import UnknownPipeline
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import Run
from tests.django_project.gallery import GALLERY, POSTER

pytestmark = pytest.mark.usefixtures("eager")
NOBODY = "01a22bf7-0000-7000-8000-000000000000"


def log_in(*permissions: str, **fields: Any) -> Client:
    """A browser of somebody of the staff who may do this."""
    user = User.objects.create_user(f"user{User.objects.count()}", is_staff=True, **fields)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def root() -> Iterator[Client]:
    """A browser of somebody who may do everything."""
    yield log_in(is_superuser=True)
    User.objects.all().delete()


def start(count: int = 3, bad: tuple[int, ...] = (), **given: Any) -> Run:
    return dag.start("gallery", {"count": count, "bad": list(bad)}, **given)


def read(client: Client, url: str, status: int = 200, **options: Any) -> str:
    answer = client.get(url, **options)
    assert answer.status_code == status, f"{url}: {answer.status_code}"
    return answer.content.decode()


def rows(client: Client, model: str, **chosen: Any) -> list[str]:
    """The ids of rows that a list shows, in its order."""
    page = read(client, show.list_url(model, **chosen))
    return [unquote(found) for found in re.findall(r'<th class="field-[^>]*><a href="[^"]*/([^/"]+)/change/', page)]


def count_queries(client: Client, url: str) -> int:
    with CaptureQueriesContext(connections[get_alias()]) as queries:
        read(client, url)
    return len(queries)


def messages(page: str) -> list[tuple[str, str]]:
    return [(kind, html.unescape(words)) for kind, words in re.findall(r'<li class="(\w+)">([^<]*)</li>', page)]


# -- the admin


def test_every_link_of_a_run_leads_somewhere(root: Client):
    run = start(bad=(1,), key="k", tags={"customer": "42"})
    dag.save(GALLERY)
    seen: dict[str, str] = {}
    left = [show.page_url("run", run.id), show.list_url("pipeline"), show.list_url("run")]
    while left:
        url = left.pop()
        kind = re.sub(r"[0-9a-f]{8}[0-9a-f-]{28,}|_3A\d+|=[^&]*", "", url)
        if url in seen or list(seen.values()).count(kind) == 2:
            continue
        seen[url] = kind
        links = [html.unescape(found) for found in re.findall(r'href="([^"#]+)"', read(root, url))]
        left += [link for link in links if link.startswith("/admin/dagabaaz/")]

    models_seen = {url.split("/")[3] for url in seen if "/change/" in url}
    assert models_seen == {"run", "node", "task", "artifact", "pipeline"}
    assert any("/registered/poster/" in url for url in seen)
    assert any("/definition/" in url for url in seen)


def test_a_runs_page_shows_its_graph_its_nodes_and_its_error(root: Client):
    run = start(bad=(1,), key="k", tags={"customer": "42"})

    page = read(root, show.page_url("run", run.id))

    assert 'data-node="resize" data-state="failed"' in page
    assert 'data-node="announce" data-state="not run"' in page
    assert "ValueError: picture 1 is no &lt;b&gt;JPEG&lt;/b&gt; (node resize)" in page
    assert "<b>JPEG" not in page
    assert re.search(r"<details><summary>Traceback</summary><pre[^>]*>Traceback \(most recent call last\)", page)
    assert re.search(r'<tr data-node="resize">.*?1 completed</a>.*?1 failed</a>', page, re.DOTALL)
    assert "customer=42" in page
    assert "&quot;count&quot;: 3" in page


def test_a_node_that_did_not_complete_took_until_its_last_task_ended(root: Client):
    run = start(bad=(1,))
    (node,) = [each for each in run.snapshot().nodes if each.slug == "resize"]
    index = [each.slug for each in run.snapshot().nodes].index("resize")

    listed = read(root, show.list_url("node", run=run.id))
    page = read(root, show.page_url("node", f"{run.id}:{index}"))

    assert node.ended_at is not None
    assert re.search(rf"closed:?</label>.*?{show.when(node.ended_at)}", page, re.DOTALL | re.IGNORECASE)
    assert re.search(r'>resize</a>.*?<td class="field-took[^>]*>[\d.]+ ?\w+<', listed, re.DOTALL)


@pytest.mark.parametrize("model", ["run", "node", "task", "artifact", "pipeline"])
def test_nothing_is_changed_and_only_those_who_may_view_see(model: str):
    run = start()
    dag.save(GALLERY)
    row = {
        "run": lambda: run.id,
        "node": lambda: f"{run.id}:0",
        "task": lambda: run.tasks()[0].id,
        "artifact": lambda: models.Artifact.objects.filter(run_id=run.id).first().pk,
        "pipeline": lambda: "gallery:1",
    }[model]()
    root, viewer, other = log_in(is_superuser=True), log_in(f"view_{model}"), log_in("view_order")
    page, listed = show.page_url(model, row), show.list_url(model)

    for client in (root, viewer):
        assert row in rows(client, model)
        read(client, page)
        assert client.post(page, {"pipeline": "x"}).status_code == 403
        assert client.get(f"{listed}add/").status_code == 403
        assert client.post(page.replace("/change/", "/delete/")).status_code == 403
    assert [other.get(url).status_code for url in (page, listed)] == [403, 403]
    assert Client().get(page).status_code == 302


def test_lists_cost_the_same_number_of_statements_for_any_number_of_rows(root: Client):
    small = start(2, tags={"a": "1"})
    urls = [show.list_url(model) for model in ("run", "node", "task", "artifact", "pipeline")]
    urls += [show.list_url(model, run=small.id) for model in ("node", "task", "artifact")]
    before = [count_queries(root, url) for url in urls]
    for number in range(4):
        dag.start(GALLERY.model_copy(update={"description": str(number)}), {"count": 2}, tags={"a": "1", "b": "2"})
        dag.save(GALLERY.model_copy(update={"description": str(number)}))

    assert [count_queries(root, url) for url in urls] == [*before[:4], before[4] + 1, *before[5:]]
    assert max(before) < 12


def test_a_wide_run_is_shown_by_counts(root: Client):
    small, wide = start(2), start(60)
    pages = [read(root, show.page_url("run", run.id)) for run in (small, wide)]

    assert len(pages[1]) < len(pages[0]) + 1_000
    assert "60 completed" in pages[1]
    queries = [count_queries(root, show.page_url("run", run.id)) for run in (small, wide)]
    assert queries[0] == queries[1]
    first, second = rows(root, "task", run=wide.id), rows(root, "task", run=wide.id, p=2)
    assert [task.id for task in wide.tasks()][:100] == first + second
    assert len(rows(root, "task", run=wide.id, node=2, status__exact="completed", all="")) == 60


def test_a_list_counts_only_so_far(root: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "COUNTED_ROWS", 3)
    start(10)
    with CaptureQueriesContext(connections[get_alias()]) as queries:
        page = read(root, show.list_url("task"))

    assert "There are more than these" in page
    counts = [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 4" in sql for sql in counts)
    assert "There are more" not in read(root, show.list_url("run"))


def test_runs_are_found(root: Client):
    first = start(1, key="invoice-7", tags={"customer": "42", "plan": "a=b"})
    second = start(1, bad=(0,), tags={"customer": "43"})
    third = dag.start("poster", {"title": "Cat"}, key="invoice-7")

    def found(**chosen: Any) -> list[str]:
        return rows(root, "run", **chosen)

    assert found() == [third.id, second.id, first.id]
    assert found(q=first.id) == found(q=first.id.upper()) == [first.id]
    assert found(q=second.tasks()[0].attempt_id) == found(q=second.tasks()[-1].id) == [second.id]
    assert found(q="invoice-7") == [third.id, first.id]
    assert found(q="customer") == [second.id, first.id]
    assert found(q="customer=42") == found(q="plan=a=b") == found(tag="customer=42") == [first.id]
    assert found(q="nothing") == found(q="customer=4") == found(tag="nothing") == []
    assert found(pipeline="poster") == [third.id]
    assert found(status__exact="failed") == [second.id]
    assert found(started="hour", pipeline="gallery", tag="customer=43") == [second.id]
    assert found(started="before") == []
    page = read(root, show.list_url("run", tag="customer=42", pipeline="gallery"))
    assert '<input type="hidden" name="pipeline" value="gallery">' in page
    assert re.findall(r'href="\?pipeline=(\w+)', page)


def test_addresses_of_nothing(root: Client):
    start()
    assert root.get(f"/admin/dagabaaz/run/{NOBODY}/change/").status_code == 302
    assert root.get("/admin/dagabaaz/run/x/change/").status_code == 302
    assert root.get("/admin/dagabaaz/pipeline/registered/x/").status_code == 404
    assert root.get("/admin/dagabaaz/pipeline/definition/x/").status_code == 404
    for path in ("live", "steer/retry"):
        assert root.get(f"/admin/dagabaaz/run/{NOBODY}/{path}/").status_code == 404
    for chosen in ({"run": "x"}, {"run": NOBODY}):
        assert rows(root, "task", **chosen) == []


# -- what is done to runs


def act(client: Client, action: str, *runs: Run) -> str:
    data = {"action": action, "_selected_action": [run.id for run in runs]}
    return client.post(show.list_url("run"), data, follow=True).content.decode()


def steer(client: Client, step: str, run: Run) -> Any:
    return client.post(f"/admin/dagabaaz/run/{run.id}/steer/{step}/", follow=True)


def open_run() -> Run:
    """A run that nobody works at."""
    dag.app.conf.task_always_eager = False
    try:
        return start()
    finally:
        dag.app.conf.task_always_eager = True


def test_actions_in_the_list_tell_what_became_of_each():
    client = log_in("view_run", "cancel_run", "retry_run", "rollback_run")
    first, second, ended, failed = open_run(), open_run(), start(), start(bad=(0,))

    assert messages(act(client, "cancel", first, second, ended)) == [
        ("success", "2 of 3 cancelled."),
        ("error", f"Run {ended.id} is completed: only a run that has not ended can be cancelled."),
    ]
    assert [run.status for run in (first, second, ended)] == ["cancelled", "cancelled", "completed"]
    assert "by user" in str(first.error)

    (retried,) = messages(act(client, "retry", failed))
    assert retried == ("success", f"Run {failed.id} was retried.")
    assert failed.snapshot().generation == 2
    ((kind, words),) = messages(act(client, "retry", ended))
    assert (kind, ended.id in words) == ("error", True)

    (undone,) = messages(act(client, "rollback", ended))
    assert undone[0] == "success"
    assert ended.rollback_status == "done"


def test_without_the_permission_there_is_no_action_and_no_way_around():
    client, run = log_in("view_run", "retry_run"), open_run()

    page = read(client, show.list_url("run"))
    assert re.findall(r'<option value="(\w+)"', page) == ["retry"]
    act(client, "cancel", run)
    assert steer(client, "cancel", run).status_code == 403
    assert client.get(f"/admin/dagabaaz/run/{run.id}/steer/cancel/").status_code == 403
    assert "/steer/" not in read(client, show.page_url("run", run.id))
    assert run.status == RunStatus.RUNNING
    assert steer(log_in("cancel_run"), "cancel", run).status_code == 403


def test_buttons_of_a_runs_page_ask_before_they_do(root: Client):
    run = open_run()

    page = read(root, show.page_url("run", run.id))
    assert re.findall(r"/steer/(\w+)/", page) == ["cancel"]
    assert "No further task" in read(root, f"/admin/dagabaaz/run/{run.id}/steer/cancel/")
    assert run.status == RunStatus.RUNNING

    answer = steer(root, "cancel", run)
    assert messages(answer.content.decode()) == [("success", f"Run {run.id} was cancelled.")]
    assert run.status == "cancelled"
    assert re.findall(r"/steer/(\w+)/", answer.content.decode()) == ["retry"]
    assert [kind for kind, _ in messages(steer(root, "rollback", run).content.decode())] == ["error"]
    assert "will probably be refused" in read(root, f"/admin/dagabaaz/run/{run.id}/steer/cancel/")
    assert "Cancel: asked for in the admin." in read(root, f"/admin/dagabaaz/run/{run.id}/history/")


# -- a form of a pipeline's input


def test_a_form_has_a_field_for_each_input_of_its_type():
    form = pipeline_form("poster")()

    kinds = {name: type(field).__name__ for name, field in form.fields.items()}
    assert kinds == {
        "file": "CharField",
        "title": "CharField",
        "copies": "IntegerField",
        "scale": "FloatField",
        "glossy": "BooleanField",
        "format": "TypedChoiceField",
        "paper": "TypedChoiceField",
        "day": "DateField",
        "colours": "JSONField",
        "extra": "CharField",
    }
    assert {name for name, field in form.fields.items() if field.required} == {"title"}
    initial = {name: field.initial for name, field in form.fields.items() if field.initial not in (None, "")}
    assert initial == {"copies": 2, "scale": 1.5, "glossy": True, "format": "png"}
    assert (form.fields["title"].help_text, form.fields["title"].max_length) == ("Above the picture", 20)
    assert (form.fields["file"].label, form.fields["file"].widget.attrs["placeholder"]) == (
        "Picture file",
        "/pictures/cat.jpg",
    )
    assert dict(form.fields["paper"].choices).keys() == {"", "a4", "a3"}


def test_a_valid_form_starts_a_run_with_its_values():
    given = {
        "title": "Cat",
        "copies": "5",
        "scale": "",
        "glossy": "",
        "format": "jpeg",
        "paper": "a3",
        "day": "2026-05-01",
        "colours": '["red"]',
        "file": "/cat.jpg",
    }
    form = pipeline_form("poster")(given)
    assert form.is_valid(), form.errors
    assert form.cleaned_data == {
        "title": "Cat",
        "copies": 5,
        "glossy": False,
        "format": "jpeg",
        "paper": "a3",
        "day": "2026-05-01",
        "colours": ["red"],
        "file": "/cat.jpg",
    }

    run = form.start(key="cat", tags={"kind": "poster"})
    assert (run.status, run.tags) == ("completed", {"kind": "poster"})
    (result,) = [run.result("print")]
    assert (result["copies"], result["scale"], result["format"], result["day"]) == (5, 1.5, "jpeg", "2026-05-01")
    assert dag.start("poster", form.cleaned_data, key="cat") == run


def test_what_is_wrong_is_told_beside_its_field():
    given = {"title": "x" * 21, "copies": "0", "format": "gif", "day": "soon", "colours": "[1]", "scale": "wide"}
    form = pipeline_form("poster")(given)

    assert not form.is_valid()
    assert form.errors.keys() == {"title", "copies", "format", "day", "colours", "scale"}
    assert "should be a valid string" in form.errors["colours"][0]
    with pytest.raises(ValueError, match="not valid"):
        form.start()
    assert list(dag.runs()) == []
    assert pipeline_form("poster")({}).errors.keys() == {"title"}


def test_a_form_class_is_extended_like_any_other():
    class Poster(pipeline_form("poster")):  # type: ignore[misc]
        notify = forms.EmailField()
        copies = forms.ChoiceField(choices=[("1", "one"), ("2", "two")])

    form = Poster({"title": "Cat", "copies": "2", "notify": "a@example.org"})
    assert form.is_valid(), form.errors
    assert form.cleaned_data["notify"] == "a@example.org"
    run = form.start()
    assert run.result("print")["copies"] == 2
    assert "notify" not in run.input
    assert issubclass(Poster, PipelineForm)


def test_forms_of_other_pipelines():
    dag.save(Pipeline("saved", nodes=[DagNode(slug="scan", plugin="scan")], version=3))

    assert list(pipeline_form("saved", version=3).base_fields) == ["count", "hold_from", "bad"]
    run = pipeline_form("saved", version=3)({"count": "1", "bad": "[0]"}).start()
    assert (run.snapshot().version, run.input["bad"]) == (3, [0])
    assert next(iter(pipeline_form(POSTER).base_fields)) == "file"
    with pytest.raises(UnknownPipeline):
        pipeline_form("unknown")


# -- progress in a page


def address(client: Client, run: Run, style: str = "graph") -> str:
    """Where a customer's page looks for news."""
    page = read(client, f"/watch/{run.id}/?style={style}")
    return html.unescape(re.search(r'data-dagabaaz-url="([^"]+)"', page)[1])


def test_a_page_shows_a_run_without_a_script():
    run = start(bad=(1,))
    customer = Client()

    page = read(customer, f"/watch/{run.id}/")
    assert "Failed in step Make smaller." in page
    assert 'data-node="resize" data-state="failed"' in page
    assert 'data-dagabaaz-over="yes"' in page
    assert "no &lt;b&gt;JPEG" not in page
    assert "<script>" not in page
    assert " style=" not in page
    listed = read(customer, f"/watch/{run.id}/?style=list")
    assert "picture 1 is no &lt;b&gt;JPEG&lt;/b&gt;" in listed
    assert "Traceback" not in listed
    assert "<svg" not in re.sub(r'<svg [^>]*class="dagabaaz-icon".*?</svg>', "", listed)
    assert "not there any more" in read(customer, f"/watch/{NOBODY}/")


def test_an_address_shows_its_own_run_for_a_while_and_in_its_own_way():
    run, other = start(bad=(1,)), start()
    customer = Client()
    url = address(customer, run)
    listed = address(customer, run, "list")

    assert 'data-node="resize" data-state="failed"' in read(customer, url)
    assert "picture 1" not in read(customer, url)
    assert "picture 1" not in read(customer, f"{url}&errors=1&style=list")
    assert "picture 1" in read(customer, listed)
    read(customer, url.replace(run.id, other.id), 404)
    read(customer, url.partition("?")[0], 404)
    read(customer, f"{url}x", 404)
    read(customer, url.replace(run.id, NOBODY), 404)
    with override_settings(DAGABAAZ_PROGRESS_MAX_AGE=-1):
        read(customer, url, 404)
    assert customer.post(url).status_code == 405
    assert customer.get(url)["Cache-Control"].count("no-store") == 1
    # What is shown again is not signed again: an address does not outlive its time by being used.
    assert html.unescape(read(customer, url)).count(url) == 1


def test_staff_who_may_view_runs_need_no_token():
    run = start()
    url = f"/runs/{run.id}/progress/"

    assert "Completed." in read(log_in("view_run"), url)
    read(log_in("view_task"), url, 404)
    facts = json.loads(read(log_in("view_run"), url, headers={"Accept": "application/json"}))
    assert (facts["status"], facts["over"], facts["done"], facts["total"]) == ("completed", True, 5, 5)
    assert next(node["slug"] for node in facts["nodes"]) == "scan"
    assert json.loads(read(log_in("view_run"), f"{url}?format=json")) == facts


def owns_run(request: Any, run: Run) -> bool:
    """A rule of the project's own."""
    return may_see_run(request, run) or run.tags.get("customer") == request.GET.get("customer")


@override_settings(DAGABAAZ_MAY_SEE_RUN="tests.django_project.pages.owns_run")
def test_a_project_may_have_a_rule_of_its_own():
    run = start(tags={"customer": "42"})

    read(Client(), f"/runs/{run.id}/progress/?customer=42")
    read(Client(), f"/runs/{run.id}/progress/?customer=43", 404)
    read(Client(), address(Client(), run))


def test_a_run_that_goes_on_says_how_far_it_is():
    page = read(Client(), f"/watch/{open_run().id}/")

    assert "Running: 0 of 5 steps done." in page
    assert 'data-dagabaaz-over="no"' in page
    assert 'role="status" aria-live="polite"' in page
