"""Measurements, run by hand: `make bench`, `make bench-memory`. Ratios of one run; never part of the tests."""
