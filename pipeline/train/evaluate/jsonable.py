"""Numbers as JSON has them: NaN is null."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and what holds them, as Python's own; NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
