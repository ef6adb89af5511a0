"""Mask to polygons: trace, join across seams, attributes, files. Knows no torch, no Dask."""
