"""Redaction of secrets, user names and home folders in texts that are shared."""

import getpass
import os
import re
from collections.abc import Mapping

HIDDEN = "***"
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY", re.I)
TOKEN_SHAPES = re.compile(r"\b(?:hf|sk|ghp|gho|github_pat|ms)[_-](?=\w*\d)[A-Za-z0-9_-]{16,}")
URL_USER = re.compile(r"(?<=://)[^/@\s]+@")
HOMES = re.compile(r"(?<![\w.~-])/(?:home|Users)/[^/\s:;,'\")]+")
MIN_SECRET_LENGTH = 6  # characters; shorter values ("1", "true") are no secrets and match everywhere


def scrub(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return `text` without secrets and personal names.

    Removed are values of secret environment variables, access tokens, user names in URLs, home folders, and the user
    name as a part of a path.
    """
    for name, value in environ.items():
        if SECRET_NAMES.search(name) and len(value) >= MIN_SECRET_LENGTH:
            text = text.replace(value, HIDDEN)
    text = URL_USER.sub(f"{HIDDEN}@", TOKEN_SHAPES.sub(HIDDEN, text))
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    text = HOMES.sub("~", text)
    return re.sub(rf"(?<=/){re.escape(_user())}(?=/|$)", HIDDEN, text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user ID can have no name
        return "?"
