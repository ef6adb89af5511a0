"""Measurements, run by hand: `make bench`, `make bench-memory`. Ratios of one run; never part of the tests."""

import os

# As the command line does; before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
