"""From files to token ids: sources -> formats -> render -> steps."""
