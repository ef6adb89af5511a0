"""Opening any input as a `Scene`: bands, validity, synthetic scenes. Knows no torch, no Dask."""
