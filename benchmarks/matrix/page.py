"""The tables of docs/families.md: a row a family, the counts, the faults, and the refusals with their words."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]  # `name`, and outcomes as dictionaries by stage
STAGES = ("make", "plan", "train", "step", "peft", "answer", "mlx")
HEAD = ["type", "trains", "path", "loss", "gradient", "peft", "answer", "MLX"]
LONGEST = 300  # characters of a fact
NONE: dict[str, Any] = {"state": "", "cell": "", "facts": {}}


def stage(row: Row, name: str) -> dict[str, Any]:
    """Return the outcome of a stage, an empty one if it was left out."""
    found: dict[str, Any] = row.get(name, NONE)
    return found


def states(row: Row) -> dict[str, str]:
    """Return the states of the stages that were tried."""
    return {name: stage(row, name)["state"] for name in STAGES if name in row}


def verdict(row: Row) -> str:
    """Return the verdict on a row: CRASH, WRONG, not made, absent, refused or right."""
    found = states(row)
    if found.get("make") != "ok":
        return "absent" if found.get("make") == "absent" else "not made"
    for state, word in (("crash", "CRASH"), ("wrong", "WRONG")):
        if state in found.values():
            return word
    return "right" if found.get("step") == "ok" else "refused"


def counts(rows: Iterable[Row]) -> str:
    """Return the counts of the verdicts in one line."""
    rows = list(rows)
    tried = [row for row in rows if stage(row, "make")["state"] == "ok"]
    kinds = {row["name"].partition("+")[0] for row in tried}
    right = {
        name: sum(stage(row, name)["state"] == "ok" for row in rows)
        for name in ("train", "step", "peft", "answer", "mlx")
    }
    verdicts = [verdict(row) for row in rows]
    words = ", ".join(f"{word}: {verdicts.count(word)}" for word in ("WRONG", "CRASH", "not made", "absent"))
    refused = sum("refused" in (stage(row, "plan")["state"], stage(row, "train")["state"]) for row in rows)
    return (
        f"Model types tried: {len(kinds)}, in {len(tried)} models. "
        f"PyTorch trains {right['train']}: loss and gradients right in {right['step']}, adapter right in peft in "
        f"{right['peft']}, answers right in {right['answer']}. Refused in words: {refused}. "
        f"Right on MLX: {right['mlx']}. {words}."
    )


def table(rows: Iterable[Row]) -> str:
    """Return the Markdown table of all rows."""
    lines = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(row: Row) -> list[str]:
    """Return the cells of one row; what is wrong is bold."""
    if stage(row, "make")["state"] != "ok":
        return [f"`{row['name']}`", verdict(row), *[""] * (len(HEAD) - 2)]
    step, opened = stage(row, "step"), stage(row, "train")
    loss, _comma, gradient = step["cell"].partition(", ")
    trains = {"ok": "yes", "refused": "no"}.get(
        (opened if "train" in row else stage(row, "plan"))["state"], "**CRASH**"
    )
    mlx = stage(row, "mlx")
    mlx_cell = mlx["cell"].partition(", ")[0]
    return [
        f"`{row['name']}`", trains, opened["cell"] if opened["state"] == "ok" else "", _marked(step, loss),
        _marked(step, gradient), _marked(stage(row, "peft")), _marked(stage(row, "answer")), _marked(mlx, mlx_cell),
    ]  # fmt: skip


def _marked(outcome: dict[str, Any], text: str | None = None) -> str:
    text = outcome["cell"] if text is None else text
    return f"**{text}**" if text and outcome["state"] in ("wrong", "crash") else text


def faults(rows: Iterable[Row]) -> str:
    """Return a list of everything that is wrong or crashed, with its facts; a sentence if nothing is."""
    lines = [
        f"- `{row['name']}`, {name}: {_told(stage(row, name)['facts'])}"
        for row in rows
        for name in STAGES
        if stage(row, name)["state"] in ("wrong", "crash")
    ]
    return "\n".join(lines) or "None."


def _told(facts: dict[str, Any]) -> str:
    shown = {
        key: value
        for key, value in facts.items()
        if value not in ([], "", 0) and key not in ("log", "notes", "warnings")
    }
    return "; ".join(f"{key}: {' '.join(_number(value).split())[:LONGEST]}" for key, value in shown.items())


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def remarks(rows: Iterable[Row]) -> str:
    """Return the modules whose adapter gets no gradient, and the routers that have an adapter, as a table."""
    lines = ["| type | adapters without a gradient | routers with an adapter |", "|---|---|---|"]
    for row in rows:
        idle = stage(row, "step")["facts"].get("idle", [])
        routers = stage(row, "train")["facts"].get("routers", [])
        if idle or routers:
            lines.append(f"| `{row['name']}` | {_number(idle)} | {_number(routers)} |")
    return "\n".join(lines) if len(lines) > 2 else "None."


def refusals(rows: Iterable[Row], names: tuple[str, ...], with_fix: bool = True) -> str:
    """Return the refusals of the stages `names` as a table: the words, perhaps with the fix, and the types."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name in names:
            if stage(row, name)["state"] == "refused":
                facts = stage(row, name)["facts"]
                found[_words(facts, row["name"].partition("+")[0], with_fix)].append(f"`{row['name']}`")
    lines = ["| words | types |", "|---|---|"]
    lines += [f"| {words} | {', '.join(types)} |" for words, types in sorted(found.items())]
    return "\n".join(lines) if found else "None."


def _words(facts: dict[str, str], kind: str, with_fix: bool) -> str:
    """Return a refusal in one line: what happened, what was found, and the fix; TYPE and CLASS stand for names."""
    lines = [facts[name].strip().partition("\n")[0] for name in ("what", "found", "fix")[: 3 if with_fix else 2]]
    text = re.sub(r"<class '[^']*'>", "CLASS", " · ".join(line for line in lines if line))
    return text.replace(kind, "TYPE").replace("|", "\\|").replace("<", "&lt;")[:400]
