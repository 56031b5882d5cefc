"""Messages and signals between the supervisor and its worker."""
