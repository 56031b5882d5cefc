"""Can this machine train, and if not, what mends it? One file for each thing that is looked at; examine.py asks them all."""
