"""Command-line interface: parses arguments, calls the library and passes the result to a reporter."""
