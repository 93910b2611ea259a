"""Numbers and durations as a user reads them."""

import math


def number(x: float) -> str:
    """About four digits: 12,345 · 187.3 · 12.34 · 0.612 · 3.0e-04."""
    size = abs(x)
    if not math.isfinite(x) or size >= 1e7:
        return f"{x:.3g}"
    if size >= 1000:
        return f"{x:,.0f}"
    if size >= 100:
        return f"{x:.1f}"
    if size >= 1:
        return f"{x:.2f}"
    return f"{x:.3g}" if size >= 1e-3 or x == 0 else f"{x:.1e}"


def duration(seconds: float) -> str:
    """8.8 s · 4 min 05 s · 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
