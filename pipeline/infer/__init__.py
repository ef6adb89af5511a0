"""One tile on one device: scale, patches, forward, crop or blend, arg-max. Knows no Dask, no files."""
