"""On-demand list prices in US dollars per hour, each with source and date. None: no price was found.

Spot prices are not listed: they change by the hour and the region. SkyPilot and the platforms show them.
"""

from dataclasses import dataclass

from lorafit.messages import noted


@dataclass(frozen=True)
class Price:
    """A price in dollars per hour; None if unknown. `source` is a msgid; it can hold a remark, such as a free tier."""

    dollars: float | None
    source: str
    read: str  # year and month in which the source was read


EC2 = noted("AWS EC2 on demand, us-east-1; SageMaker costs more")
# Keys: machine names in hardware/catalogue/clouds.py.
PRICES: dict[str, Price] = {
    "g4dn.xlarge": Price(0.526, EC2, "2025-11"),
    "g4dn.2xlarge": Price(0.752, EC2, "2025-11"),
    "g5.xlarge": Price(1.006, EC2, "2026-06"),
    "p3.2xlarge": Price(3.06, EC2, "2025-11"),
    "p3.8xlarge": Price(12.24, EC2, "2025-11"),
    "p4d.24xlarge": Price(21.96, EC2, "2025-11"),
    "p4de.24xlarge": Price(27.45, EC2, "2025-11"),
    "p5.48xlarge": Price(55.04, EC2, "2025-11"),
    # 1.07 compute units per hour (read 2026-09), 9.99 dollars for 100 units; the free tier costs nothing.
    "colab-t4": Price(0.11, noted("Colab compute units; free in the free tier"), "2026-09"),
    "colab-l4": Price(None, noted("Colab shows compute units per hour under Resources"), "2026-09"),
    "colab-a100": Price(None, noted("Colab shows compute units per hour under Resources"), "2026-09"),
    "kaggle-p100": Price(0.0, noted("Kaggle: free, about 30 GPU hours per week"), "2026-09"),
    "kaggle-t4x2": Price(0.0, noted("Kaggle: free, about 30 GPU hours per week"), "2026-09"),
    "paperspace-a4000": Price(0.76, "www.paperspace.com/pricing", "2026-09"),
    "paperspace-a100": Price(None, noted("www.paperspace.com/pricing lists only prices with a commitment"), "2026-09"),
}


def price_of(machine: str) -> Price | None:
    """Return the price of the machine named `machine`, or None if it is not listed."""
    return PRICES.get(machine)
