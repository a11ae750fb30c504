"""What all pages have in common: nothing is changed in them, and a list of a million rows costs what its page shows."""

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator

#: Rows of a list that are counted, and that one can page to; filters and the search find what is behind them.
COUNTED_ROWS = 10_000


class BoundedPaginator(Paginator):
    """Counts no further than ``COUNTED_ROWS``, so that a page of a large table costs no walk through all of it."""

    @cached_property
    def count(self) -> int:
        """How many rows can be paged to."""
        return min(self._seen, COUNTED_ROWS)

    @property
    def is_cut(self) -> bool:
        """Whether there are more."""
        return self._seen > COUNTED_ROWS

    @cached_property
    def _seen(self) -> int:
        return int(self.object_list[: COUNTED_ROWS + 1].count())


class StoreAdmin(admin.ModelAdmin):
    """Rows of the store, to look at for those who have the permission to view them."""

    actions: Any = None
    list_per_page = 50
    list_max_show_all = 200
    show_full_result_count = False
    #: Columns have no index to be sorted by: the newest come first, and the parts of a run in their order.
    sortable_by = ()
    paginator = BoundedPaginator
    change_list_template = "admin/dagabaaz/change_list.html"
    if hasattr(admin, "ShowFacets"):  # from Django 5.0 on: it counts the rows of every choice of every filter
        show_facets = admin.ShowFacets.NEVER

    class Media:
        css = {"all": ["dagabaaz/dagabaaz.css"]}  # noqa: RUF012  # as Django has it

    def has_add_permission(self, request: Any, *args: Any) -> bool:
        """Nobody: dag.start() makes runs, and workers the rest."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Nobody: models refuse it too."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        """Those with ``dagabaaz.view_<model>``."""
        return bool(request.user.has_perm(f"dagabaaz.view_{self.opts.model_name}"))

    def get_readonly_fields(self, request: Any, obj: Any = None) -> Any:
        """All that the page names: it has no form."""
        return [name for _, options in self.get_fieldsets(request, obj) for name in options["fields"]]
