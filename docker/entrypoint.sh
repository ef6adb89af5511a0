#!/bin/sh
# Runs a command with the loops that were compiled when the image was built. Numba takes them only from a folder that it
# may write to: on a read-only root, or as another user, that is a copy of them (2 MB).
if [ ! -w "${NUMBA_CACHE_DIR:-/opt/kernels}" ]; then
  copy=$(mktemp -d) && cp -R "$NUMBA_CACHE_DIR/." "$copy" && export NUMBA_CACHE_DIR="$copy"
fi
exec "$@"
