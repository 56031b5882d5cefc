"""Base models: their shape, the hubs, downloads and the demo model."""
