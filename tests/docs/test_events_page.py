"""docs/events.md documents every event and every field, and no others."""

import re
from dataclasses import fields

from support.paths import ROOT

from lorafit.events import EVENTS, Event

PAGE = (ROOT / "docs" / "events.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FIELD_ROW = re.compile(r"^\| `(\w+)` \| (\w+)", re.MULTILINE)
COMMON = {f.name for f in fields(Event)}


def test_the_page_names_every_event_and_no_other() -> None:
    assert set(SECTIONS) == set(EVENTS)


def test_the_page_names_every_field_of_every_event_in_order() -> None:
    for name, kind in EVENTS.items():
        documented = [field for field, _type in FIELD_ROW.findall(SECTIONS[name])]
        assert documented == [f.name for f in fields(kind) if f.name not in COMMON], name


def test_the_page_gives_each_field_the_type_that_json_has() -> None:
    json_types = {"float": "number", "int": "integer", "str": "string", "bool": "boolean", "list": "array"}
    for name, kind in EVENTS.items():
        documented = dict(FIELD_ROW.findall(SECTIONS[name]))
        for f in fields(kind):
            python_type = re.split(r"\W", str(getattr(f.type, "__name__", f.type)))[0]
            if f.name not in COMMON:
                assert documented[f.name] == json_types[python_type], f"{name}.{f.name}"


def test_the_common_fields_are_described() -> None:
    head = PAGE.split("## Every event")[1].split("\n## ")[0]
    assert {field for field, _type in FIELD_ROW.findall(head)} == COMMON | {"event"}
