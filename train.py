"""Train: the same as `lorafit train`. See README.md."""

from scripts.start import start

if __name__ == "__main__":
    start("train")
