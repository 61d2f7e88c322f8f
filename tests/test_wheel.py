"""The built wheel, installed in an empty environment outside the checkout, runs the main job."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_runs_compare_outside_the_checkout(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT], check=True, capture_output=True
    )
    venv.create(tmp_path / "venv", with_pip=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run(
        [tmp_path / "venv/bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel], check=True
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [tmp_path / "venv/bin/grace-opt", "compare", "only=[linear,eplb,grace]", "output=out"],
        check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert {row["planner"] for row in rows} == {"linear", "eplb", "grace"}
    subprocess.run([tmp_path / "venv/bin/grace-opt", "report", "result=out"], check=True, cwd=tmp_path, env=environment)
    assert "<figure" in (tmp_path / "out" / "report.html").read_text()
    installed = subprocess.run(
        [tmp_path / "venv/bin/pip", "list"], check=True, capture_output=True, text=True
    ).stdout.lower()
    assert "torch" not in installed
