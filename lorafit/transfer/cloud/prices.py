"""On-demand list prices in US dollars per hour, each with source and date. None: no price was found.

Spot prices are not listed: they change by the hour and the region. SkyPilot and the platforms show them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """A price in dollars per hour; None if unknown. `source` can hold a remark, such as a free tier."""

    dollars: float | None
    source: str
    read: str  # year and month in which the source was read


EC2 = "AWS EC2 on demand, us-east-1; SageMaker asks more"
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
    "colab-t4": Price(0.11, "Colab compute units; free where the free tier gives one", "2026-09"),
    "colab-l4": Price(None, "Colab shows compute units an hour under Resources", "2026-09"),
    "colab-a100": Price(None, "Colab shows compute units an hour under Resources", "2026-09"),
    "kaggle-p100": Price(0.0, "Kaggle: free, about 30 GPU hours a week", "2026-09"),
    "kaggle-t4x2": Price(0.0, "Kaggle: free, about 30 GPU hours a week", "2026-09"),
    "paperspace-a4000": Price(0.76, "www.paperspace.com/pricing", "2026-09"),
    "paperspace-a100": Price(None, "www.paperspace.com/pricing names only a price with a commitment", "2026-09"),
}


def price_of(machine: str) -> Price | None:
    """Return the price of the machine named `machine`, or None if it is not listed."""
    return PRICES.get(machine)
