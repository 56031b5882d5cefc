"""The machine: detection, keeping it awake, and the catalogue of known machines."""
