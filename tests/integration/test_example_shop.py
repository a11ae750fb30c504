"""examples/shop as its users run it: run.py with a real worker and web server, and orders placed in a real browser.

With DAGABAAZ_PICTURES=1 the pictures that its README shows are taken anew, the wide one of an order of 2,000 parcels.
"""

import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import PATIENCE, TAKES_PICTURES, open_browser, save_picture
from tests.processes import ProcessTree, make_directory, remove_directory, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "shop"
WIDE = 2000 if TAKES_PICTURES else 30
#: Milliseconds that an order of so many parcels may take.
LONG = 600_000
#: Seconds that a machine on which others are busy may take to start three Pythons one after the other.
START = 110


class Shop:
    """A shop that runs, and its database."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.output = state / "output.txt"
        command = [
            sys.executable,
            EXAMPLE / "run.py",
            "--port",
            "0",
            "--state",
            state,
            "--workers",
            "2",
            "--pace",
            "0.4",
        ]
        self.tree = ProcessTree(command, log=self.output)

    @property
    def address(self) -> str:
        """Where its catalogue is; waits until it answers."""
        mark = "The shop is open: "
        wait_until(lambda: mark in self.read() or not self.tree.is_running, "the shop is open", START)
        assert mark in self.read(), self.read()
        return self.read().partition(mark)[2].split()[0]

    def read(self) -> str:
        """What run.py has printed so far."""
        return self.output.read_text(errors="replace")

    def execute(self, statement: str, *values: object) -> list[tuple]:
        """A statement on its database, by a connection of its own."""
        connection = sqlite3.connect(self.state / "db.sqlite3", timeout=30)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def stock(self) -> dict[str, int]:
        """How many there are of each product."""
        return dict(self.execute("SELECT name, stock FROM orders_product"))

    def count_received(self, plugin: str) -> int:
        """How many messages for a plugin's task its worker has got so far."""
        lines = (self.state / "worker.log").read_text(errors="replace").splitlines()
        return sum(f"Task orders.tasks.{plugin}[" in line and line.endswith("received") for line in lines)

    def run_python(self, code: str) -> str:
        """What a program prints that the shop's manage.py runs, with the bank and the carriers in no mood to think."""
        done = subprocess.run(
            [sys.executable, EXAMPLE / "manage.py", "shell", "-c", code],
            env={"SHOP_STATE": str(self.state), "SHOP_PACE": "0", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """Opened once; at the end a Ctrl-C closes it, and leaves no process."""
    state = make_directory("shop")
    shop = Shop(state)
    try:
        assert shop.address
        yield shop
        started = shop.tree.children()
        shop.tree.send(signal.SIGINT)
        assert shop.tree.wait(30) == 0, shop.read()
        assert shop.read().endswith("The shop is closed.\n")
        assert not [process for process in started if process.is_running()]
    finally:
        shop.tree.kill()
        remove_directory(state)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests; each has a page, and with it a visitor, of its own."""
    expect.set_options(timeout=PATIENCE)
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page of a visitor whom the shop has not seen yet."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def place_order(page: Page, shop: Shop, city: str = "Leeds", card: str = "a card that works", **wanted: int) -> int:
    """Fill in the form and send it; returns the order's number, or 0 where none was made."""
    page.goto(shop.address)
    for product, quantity in wanted.items():
        item = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=product))
        item.get_by_role("spinbutton").fill(str(quantity))
    page.get_by_label("Your name").fill("Ada Lovelace")
    page.get_by_label("Street").fill("1 High Street")
    page.get_by_label("City").fill(city)
    page.get_by_label(card).check()
    page.get_by_role("button", name="Place the order").click()
    number = page.url.rstrip("/").rpartition("/")[2]
    return int(number) if number.isdigit() else 0


def wait_for_end(page: Page, status: str, timeout: float = PATIENCE) -> None:
    """Wait until the page, which is not loaded again, shows that nothing changes any more."""
    expect(page.locator(f'[data-status="{status}"][data-settled]')).to_be_visible(timeout=timeout)
    expect(page.locator("[data-dagabaaz-over=yes]")).to_be_visible(timeout=PATIENCE)


def test_an_order_is_shipped_and_its_page_shows_that_live(shop, page):
    if TAKES_PICTURES:
        place_order(page, shop, Assam=3, Teapot=2, Sample=120)
        page.get_by_text(re.compile(r"^[1-9]\d parcels sent")).wait_for()
        save_picture(page, "shop-running", 900)
        wait_for_end(page, "shipped")
    before = shop.stock()
    number = place_order(page, shop, Assam=3, Teapot=2)
    page.evaluate("window.loadedOnce = true")
    expect(page.locator("[data-dagabaaz-part=words]")).to_contain_text("Running")
    expect(page.locator("#progress")).to_contain_text("€87.50 charged")
    wait_for_end(page, "shipped")
    expect(page.locator("#progress")).to_contain_text("4 parcels sent")
    expect(page.locator("[data-dagabaaz-part=words]")).to_have_text("Completed.")
    assert page.evaluate("window.loadedOnce")
    assert shop.stock() == {**before, "Assam": before["Assam"] - 3, "Teapot": before["Teapot"] - 2}
    assert shop.execute("SELECT amount, status FROM orders_payment WHERE order_id = ?", number) == [(8750, "charged")]
    parcels = shop.execute("SELECT content FROM orders_shipment WHERE order_id = ? ORDER BY number", number)
    assert [content for (content,) in parcels] == [
        "2 \u00d7 Assam",
        "1 \u00d7 Assam",
        "1 \u00d7 Teapot",
        "1 \u00d7 Teapot",
    ]


def test_an_order_to_nowhere_is_undone(shop, page):
    before = shop.stock()
    number = place_order(page, shop, city="Nowhere", Assam=3, Teapot=2)
    wait_for_end(page, "failed")
    expect(page.locator("#progress")).to_contain_text("No carrier goes to Nowhere.")
    expect(page.locator("#progress")).to_contain_text("your money was given back")
    expect(page.locator(".steps")).to_contain_text("completed, undone")
    save_picture(page, "shop-failed", 800)
    assert shop.stock() == before
    assert shop.execute("SELECT amount, status FROM orders_payment WHERE order_id = ?", number) == [(8750, "refunded")]
    assert shop.execute("SELECT tracking FROM orders_shipment WHERE order_id = ?", number) == []
    undone = shop.execute(
        "SELECT node_index FROM dagabaaz_task WHERE node_index < 0 AND run_id = "
        "(SELECT run.id FROM dagabaaz_run run JOIN dagabaaz_tag tag ON tag.run_id = run.id WHERE tag.value = ?) "
        "ORDER BY ended_at",
        str(number),
    )
    assert [index for (index,) in undone][-2:] == [-2, -1]  # the money goes back before the goods do


def test_a_card_that_is_declined_fails_the_order(shop, page):
    before = shop.stock()
    number = place_order(page, shop, card="a card that the bank declines", Sencha=1)
    wait_for_end(page, "failed")
    expect(page.locator("#progress")).to_contain_text("The bank declined the card.")
    page.get_by_role("link", name="My orders").click()
    expect(page.get_by_role("main").get_by_role("listitem")).to_contain_text([f"Order {number}"])
    expect(page.get_by_role("main")).to_contain_text("Failed")
    assert shop.stock() == before
    assert shop.execute("SELECT key FROM orders_payment WHERE order_id = ?", number) == []


def test_a_view_that_raises_after_the_start_leaves_no_run_and_no_order(shop, page):
    count = (
        "SELECT (SELECT count(*) FROM orders_order), (SELECT count(*) FROM orders_orderline), "
        "(SELECT count(*) FROM dagabaaz_run), (SELECT count(*) FROM dagabaaz_task)"
    )
    # What the view does last, after dag.start(), is refused by the database, which sees the run at that moment.
    shop.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE OF run_id ON orders_order WHEN EXISTS (SELECT 1 FROM dagabaaz_tag "
        "WHERE value = CAST(NEW.id AS TEXT)) BEGIN SELECT RAISE(ABORT, 'there is a run, and no order'); END"
    )
    before, received = shop.execute(count), shop.count_received("reserve")
    assert place_order(page, shop, Sencha=1) == 0
    expect(page.get_by_role("heading", name="IntegrityError")).to_be_visible()
    expect(page.get_by_text("there is a run, and no order").first).to_be_visible()
    assert shop.execute(count) == before
    shop.execute("DROP TRIGGER refuse")
    assert place_order(page, shop, Sencha=1) > 0
    wait_for_end(page, "shipped")
    assert shop.count_received("reserve") == received + 1


def test_an_order_of_many_parcels_has_a_task_for_each(shop, page):
    number = place_order(page, shop, Sample=WIDE)
    expect(page.locator(".steps")).to_contain_text(f"/ {WIDE:,}")
    if TAKES_PICTURES:
        page.get_by_text(re.compile(r"^1,\d{3} parcels sent")).wait_for(timeout=LONG)
    save_picture(page, "shop-wide", 900)
    wait_for_end(page, "shipped", timeout=LONG if TAKES_PICTURES else PATIENCE)
    expect(page.locator("#progress")).to_contain_text(f"{WIDE:,} parcels sent")
    assert shop.execute("SELECT count(*) FROM orders_shipment WHERE order_id = ?", number) == [(WIDE,)]


def test_only_who_placed_an_order_may_see_it(shop, page, browser):
    number = place_order(page, shop, Sencha=1)
    stranger = browser.new_page()
    for place in (f"orders/{number}/", f"orders/{number}/progress/"):
        assert stranger.goto(shop.address + place).status == 404
    stranger.goto(f"{shop.address}orders/")
    expect(stranger.get_by_role("main")).to_contain_text("You have not ordered anything yet.")
    stranger.close()


def test_what_is_wrong_with_an_order_is_told_in_the_form(shop, page):
    orders = "SELECT count(*) FROM orders_order"
    before = shop.execute(orders)
    assert place_order(page, shop) == 0
    expect(page.get_by_role("main")).to_contain_text("Choose how many you want of something.")
    assert shop.execute(orders) == before


def test_an_order_whose_address_is_corrected_in_the_admin_is_retried_and_shipped(shop, page, browser):
    number = place_order(page, shop, city="Nowhere", Teapot=1)
    wait_for_end(page, "failed")
    admin = browser.new_page()
    admin.goto(f"{shop.address}admin/orders/order/{number}/change/")
    admin.get_by_label("Username").fill("admin")
    admin.get_by_label("Password").fill("admin")
    admin.get_by_role("button", name="Log in").click()
    admin.get_by_label("City").fill("Leeds")
    admin.get_by_role("button", name="Save and continue editing").click()
    admin.locator(".field-run a").click()
    admin.get_by_role("link", name="Retry").click()
    admin.locator("#content input[type=submit]").click()
    page.reload()
    wait_for_end(page, "shipped")
    admin.close()
    paid = shop.execute("SELECT status FROM orders_payment WHERE order_id = ? ORDER BY id", number)
    assert [status for (status,) in paid] == ["refunded", "charged"]


TWICE = """
from orders import tasks
from orders.models import Order, Payment, Product, Shipment

order = Order.objects.create(visitor="nobody", name="n", street="s", city="Leeds")
product = Product.objects.create(name="Twice", description="", price=100, stock=5, units_per_parcel=2)
order.lines.create(product=product, quantity=3, price=100)


def show(what):
    product.refresh_from_db()
    money = [f"{payment.amount} {payment.status}" for payment in order.payments.all()]
    print(what, product.stock, money, [shipment.status for shipment in order.shipments.all()])


def twice(body, **values):
    for _ in range(2):
        body(order=order.pk, **values)


twice(tasks.reserve)
twice(tasks.charge)
twice(tasks.ship, parcel=1, content="2")
show("done")
twice(tasks.recall, parcel=1)
twice(tasks.recall, parcel=2)
twice(tasks.refund)
twice(tasks.release)
show("undone")
twice(tasks.reserve)
twice(tasks.charge)
twice(tasks.ship, parcel=1, content="2")
show("done again")
order.delete()
product.delete()
"""


def test_bodies_that_run_twice_do_their_work_once(shop):
    assert shop.run_python(TWICE).splitlines()[-3:] == [
        "done 2 ['300 charged'] ['sent']",
        "undone 5 ['300 refunded'] ['recalled']",
        "done again 2 ['300 refunded', '300 charged'] ['sent']",
    ]
