"""What training can do, measured: run by hand, results in docs/."""
