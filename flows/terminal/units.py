"""Amounts as people read them."""


def bytes_text(count: int) -> str:
    """``count`` bytes, such as "1.2 GB"."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """``seconds`` in its largest unit, such as "3 days"."""
    for size_s, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size_s:
            return count_text(int(seconds // size_s), unit)
    return count_text(max(0, int(seconds)), "second")


def count_text(count: int, noun: str) -> str:
    """``count`` of ``noun``, in the plural where it is not one."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
