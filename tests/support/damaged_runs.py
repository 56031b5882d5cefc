"""Damage to run folders: torn events, unreadable settings."""

from lorafit.run_folders.directory import RunDir


def damage_config(run: RunDir) -> None:
    run.config.write_text("lora_r: [8\n")


def tear_events(run: RunDir) -> None:
    run.events.write_bytes(run.events.read_bytes()[:-70] + b"\xff\x00")
