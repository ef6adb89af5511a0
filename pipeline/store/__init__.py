"""Scratch store and ledger, and the files that a finished run leaves. Knows no torch, no Dask."""
