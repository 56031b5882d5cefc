"""Compare base and tuned answers: the same as `lorafit compare`. See README.md."""

from scripts.start import start

if __name__ == "__main__":
    start("compare")
