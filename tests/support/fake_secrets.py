"""Values that look like secrets and must not appear in any output."""

TOKEN = "hf_" + "aBcD1234" * 4
