"""Where workers come from: one module per kind of cluster, and what is asked of workers before the first tile."""
