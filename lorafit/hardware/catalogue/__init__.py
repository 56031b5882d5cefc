"""What is known of machines, models and data that are not here: plain figures, each with its source."""
