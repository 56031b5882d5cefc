"""The data report as JSON."""

import json
from typing import Any

from lorafit.data.findings import DataReport, ShownSample


def data_json(report: DataReport) -> str:
    """Return the report as JSON. `samples` holds the first samples in order, with the texts in the loss."""
    facts: dict[str, Any] = {
        "model": report.model_name,
        "max_length": report.max_length,
        "rows": report.rows,
        "good": report.good,
        "train": report.train,
        "valid": report.valid,
        "files": {name: {"rows": read, "good": good} for name, (read, good) in report.files.items()},
        "notes": [{"file": file, "text": text} for file, text in report.reading_notes],
        "formats": report.formats,
        "rejected": {
            "rows": report.rejected,
            "without_answer": report.without_answer,
            "reasons": [
                {"reason": group.reason, "rows": group.rows, "first": str(group.examples[0][0])}
                for group in report.reject_reasons
            ],
        },
        "keys": {
            "unused": {
                key: {"rows": rows, "flag": report.key_use.flag_for(key) or None}
                for key, rows in report.key_use.unused.items()
            },
            "pairs": [
                {"question": question, "answer": answer, "rows": rows}
                for (question, answer), rows in report.key_use.pairs.items()
            ],
        },
        "duplicates": {"exact": report.duplicates.exact, "near": report.duplicates.near},
        "tokens": report.total_tokens,
        "targets": report.total_targets,
        "truncated": {"rows": report.cut_rows, "tokens": report.cut_tokens, "targets": report.cut_targets},
        "left_out_by_template": report.dropped_rows,
        "thoughts": {
            "rows": report.thoughts.count("carries"),
            "notes": list(report.thoughts.notes()),
            "problem": problem.brief if (problem := report.thoughts.problem()) else None,
        },
        "odd_characters": report.strange_rows,
        "samples": [_sample(sample) for sample in report.samples.get("all", [])],
        "samples_left_out": report.good - len(report.samples.get("all", [])),
    }
    return json.dumps(facts, ensure_ascii=False, indent=1)


def _sample(sample: ShownSample) -> dict[str, Any]:
    return {
        "row": str(sample.place),
        "format": sample.format,
        "tokens": sample.tokens,
        "cut": sample.cut,
        "text": "".join(text for text, _target in sample.pieces),
        "targets": [text for text, target in sample.pieces if target],
    }
