"""What the supervisor knows and decides: its worker's pipes and pulse, deaths and cures, memory, power, clock."""
