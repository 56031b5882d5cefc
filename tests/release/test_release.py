"""The release: one version, its notes, the packages' contents, and what .github/workflows/release.yml promises."""

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from support.paths import ROOT

import lorafit

VERSION = lorafit.__version__
JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))["jobs"]


def release_notes(version: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/release_notes.py", version]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")


def needs(job: str) -> set[str]:
    """Return the names of the jobs that `job` waits for, directly or through others."""
    direct = JOBS[job].get("needs", [])
    names = {direct} if isinstance(direct, str) else set(direct)
    return names.union(*map(needs, names))


def commands(job: str) -> str:
    return "\n".join(step["run"] for step in JOBS[job]["steps"] if "run" in step)


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lorafit.__version__"}


def test_the_changelog_has_notes_for_this_version_and_the_newest_comes_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d\d-\d\d$", text, re.M)
    assert versions[0] == VERSION
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_the_release_notes_are_one_section_without_the_next() -> None:
    done = release_notes(VERSION)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("### ")
    assert "\n## " not in done.stdout


@pytest.mark.parametrize("version", ["99.0.0", VERSION.rpartition(".")[0]])
def test_a_version_without_notes_stops_the_release(version: str) -> None:
    done = release_notes(version)
    assert done.returncode != 0
    assert done.stdout == ""


def test_the_build_checks_the_tag_and_the_packages() -> None:
    text = commands("build")
    assert 'test "$GITHUB_REF_NAME" = "v$(' in text
    assert "python -m build" in text
    assert "twine check --strict" in text


def test_the_wheel_is_tried_on_linux_and_macos() -> None:
    systems = {name.split("-")[0] for name in JOBS["install"]["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "macos"}
    for command in ("lorafit --help", "lorafit doctor", "lorafit plan --demo"):
        assert command in commands("install")


def test_nothing_is_published_before_everything_has_passed() -> None:
    assert needs("publish") == {"tests", "build", "install"}
    assert needs("github") == {"publish", *needs("publish")}


def test_only_the_publishing_jobs_have_rights() -> None:
    assert JOBS["publish"]["permissions"] == {"id-token": "write"}
    assert JOBS["publish"]["environment"] == "pypi"
    assert JOBS["github"]["permissions"] == {"contents": "write"}
    assert [name for name, job in JOBS.items() if "permissions" in job] == ["publish", "github"]


@pytest.mark.parametrize("name", ["demo_law_zh.jsonl", "lorafit.mo", "report.html", "py.typed"])
def test_package_data_is_listed(name: str) -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"][
        "lorafit"
    ]
    packaged = {path for pattern in patterns for path in (ROOT / "lorafit").glob(pattern)}
    data = {path for path in (ROOT / "lorafit").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == packaged
