"""Talk to a model: the same as `lorafit chat`. See README.md."""

from scripts.start import start

if __name__ == "__main__":
    start("chat")
