"""Numbers of a plan in words."""


def count(parameters: int) -> str:
    """A number of parameters: 135M, 7B."""
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def size(size_bytes: float) -> str:
    """Bytes: 1,140 GB, 1.25 GB, 28 MB."""
    if size_bytes >= 1e12:
        return f"{size_bytes / 1e9:,.0f} GB"
    return f"{size_bytes / 1e9:.3g} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.3g} MB"


def duration(seconds: float) -> str:
    """Seconds: 89 s, 12.0 minutes, 3.5 hours."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
