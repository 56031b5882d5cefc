"""Functions that damage run folders: unreadable settings, a truncated event log."""

from lorafit.run_folders.directory import RunDir


def damage_config(run: RunDir) -> None:
    """Replace the config file by invalid YAML."""
    run.config.write_text("lora_r: [8\n")


def tear_events(run: RunDir) -> None:
    """Cut the last 70 bytes off the event log, and append two bytes that are not UTF-8."""
    run.events.write_bytes(run.events.read_bytes()[:-70] + b"\xff\x00")
