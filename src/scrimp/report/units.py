"""Numbers as people read them: bytes, seconds, fractions and counts as short strings."""

import math

_BYTE_UNITS = ("KB", "MB", "GB", "TB", "PB")


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units (1 KB = 1000 bytes) with four digits at most, for example ``103.4 KB``."""
    if not math.isfinite(num_bytes):
        return "unknown"
    if abs(num_bytes) < 1000:
        return f"{num_bytes:.0f} bytes"
    factor, unit = byte_unit(num_bytes)
    return f"{num_bytes / factor:.1f} {unit}"


def format_bytes_exact(num_bytes: int) -> str:
    """A size to the byte, for example ``103,412 bytes``."""
    return f"{num_bytes:,} bytes"


def byte_unit(largest_bytes: float) -> tuple[float, str]:
    """The factor and name of the decimal unit in which ``largest_bytes``, once rounded, is below 1000."""
    factor, unit = 1.0, "bytes"
    for name in _BYTE_UNITS:
        # 999,950 bytes would be shown as "1000.0 KB"
        if abs(largest_bytes) / factor < (999.5 if unit == "bytes" else 999.95):
            break
        factor, unit = factor * 1000, name
    return factor, unit


def format_seconds(seconds: float) -> str:
    """A length of time, for example ``0.42 s``, ``42.1 s``, ``1 m 23 s`` or ``2 h 05 m``."""
    if not math.isfinite(seconds):
        return "unknown"
    if abs(seconds) < 9.995:
        return f"{seconds:.2f} s"
    if abs(seconds) < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} m"


def format_percent(fraction: float, *, digits: int = 2) -> str:
    """A fraction in percent, for example ``98.61 %``."""
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "not a number"


def format_count(count: float) -> str:
    """A whole number with separators, for example ``28,740``."""
    return f"{count:,.0f}" if math.isfinite(count) else "unknown"


def format_number(value: float) -> str:
    """A number with four significant digits and no trailing zeros, for example ``0.0213`` or ``1.2e-05``."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if abs(value) >= 9999.5:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:.4g}"


def format_ratio(numerator: float, denominator: float) -> str:
    """How many times ``denominator`` goes into ``numerator``, for example ``4.9x``."""
    return f"{numerator / denominator:.1f}x" if denominator else "unknown"
