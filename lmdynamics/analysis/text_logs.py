"""Text files of logged losses: tables and lines of several kinds, told apart by what they hold and not by their names.

Each kind has a function from the text to records, the fields of each thing that was logged at once.
"""

import ast
import json
import re
from typing import Any

NUMBER = r"[-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf"
STEP = re.compile(
    r"^[\s\d\[\]().:,/TZ-]*?\b(?P<name>s|step|steps|iter|iteration|global_step)"
    r"(?:[:=]\s*|\s+:?\s*)(?P<step>\d+)(?!\.?\d)",
    re.IGNORECASE,
)
PAIR = re.compile(rf"(?P<name>[A-Za-z][\w/]*(?: [A-Za-z][\w/]*)*)\s*[:=\s]\s*(?P<value>{NUMBER})(?![\w.])", re.I)
SHORT = {"trl": "train_loss", "tel": "val_loss"}  # as llm.c writes them
RECORD = re.compile(r"\{['\"].*?\}")


def printed_records(text: str) -> list[dict[str, Any]]:
    """Lines that hold a dictionary with a loss, as Hugging Face's Trainer prints them.

    They name no step: those with the training loss are counted, and a step is such a line.
    """
    records, count = [], 0
    for line in text.split("\n"):
        for found in RECORD.findall(line):
            try:
                record = ast.literal_eval(re.sub(r"\b(nan|inf)\b", "None", found))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(record, dict) and any("loss" in str(key) for key in record):
                count += "loss" in record
                records.append({"step": count, **record} if "train_runtime" not in record else {})
    return [record for record in records if record]


def step_lines(text: str) -> list[dict[str, Any]]:
    """Lines that begin with a step and name their numbers: `step:250/3000 val_loss:4.5`, `s:250 trl:4.5 lr:0.1`."""
    records = []
    for line in text.split("\n"):
        if not (start := STEP.match(line)):
            continue
        record: dict[str, Any] = {"step": int(start["step"])}
        for pair in PAIR.finditer(line, start.end()):
            name = re.sub(r"\s+", "_", pair["name"].strip())
            record.setdefault(SHORT.get(name, name), float(pair["value"].replace("_", "")))
        if any("loss" in name.lower() for name in record):
            records.append(record)
    return records


def one_json(text: str) -> Any:
    """A whole text as JSON, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
