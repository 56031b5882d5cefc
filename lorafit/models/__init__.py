"""Base models: their shape, model hubs, downloads and the demo model."""
