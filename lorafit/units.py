"""How are bytes, seconds and counts written for a person? The only 1024**3 in the code."""

KIB, MIB, GIB = 1024, 1024**2, 1024**3


def bytes_text(size: int | None) -> str:
    """`size` in bytes as "1.4 GiB" or "312 MiB"; "?" for None (unknown is never 0)."""
    if size is None:
        return "?"
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / KIB:.0f} KiB"


def seconds_text(seconds: float | None) -> str:
    """`seconds` as "45 s", "3 min 20 s", "2 h 05 min", "1 d 03 h"; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def count_text(count: int) -> str:
    """`count` with thousands apart: "21,476"."""
    return f"{count:,}"
