"""The engine alone, in memory: ``make bench-micro``."""
