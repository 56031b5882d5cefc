"""Values that look like secrets and must not be shown."""

TOKEN = "hf_" + "aBcD1234" * 4
