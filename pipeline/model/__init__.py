"""Networks, the model folder, and what a network promises: stride, halo, equivariance. Knows no scene, no Dask."""
