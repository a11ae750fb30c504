"""Other libraries that run graphs of tasks, each in an environment of its own: ``make bench-peers``.

Each does a fan-out and in and a chain as its documentation shows, with no-op tasks, and this package does the same in
the same round. They promise different things: DBOS and Prefect keep durable state, dyrygent and director none that
outlives the broker's messages. A peer that cannot be installed or does not run is named, and left out.
"""
