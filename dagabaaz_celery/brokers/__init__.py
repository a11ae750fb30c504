"""Brokers that ship with the package."""
