"""Plan, Dask graph, progress, resume: the only room that knows Dask."""
