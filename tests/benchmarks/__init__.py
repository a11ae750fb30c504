"""What a run costs, beside bare Celery, its canvas, and the least that any durable barrier costs.

    python -m tests.benchmarks --pairs postgresql-redis --shapes fan-1000 --rounds 3 --out build/benchmarks

Every figure comes from real worker processes. All rivals run in turn within one round, so that a machine that others
use as well slows all of them alike: trust the ratios.
"""
