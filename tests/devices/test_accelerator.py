"""Device placement is proved without a GPU: everything that computes runs on a logical accelerator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_everything_runs_on_a_second_device(tmp_path):
    report = tmp_path / "differences.jsonl"
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("on_accelerator.py"))]
    command += ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["LARGEST_DIFFERENCES"] = str(report)
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert max(row["difference"] for row in rows if not row["what"].startswith("training")) < 1e-4
    for row in sorted(rows, key=lambda row: row["difference"]):
        print(f"{row['what']:<45} {row['difference']:.1e}  {len(row['functions'])} functions")
