"""Supervision of the worker process: pipes, watchdog, diagnosis, recovery, memory, power, temperature and clock."""
