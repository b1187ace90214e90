"""The engine's benchmark, as far as it needs no rival and no clock: that it still runs on what it measures."""

import json
import subprocess
import sys
from pathlib import Path

GROWTH = Path(__file__).parent.parent / "benchmarks" / "growth.py"


def test_growth_measures_the_production_search() -> None:
    words = [sys.executable, str(GROWTH), "--measure", "ours", "--outcomes", "1200"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["outcomes"] == found["spent"] <= 1200 and found["outcomes"] > 1000
    assert found["decide_ms"] > 0 and found["resident"] > 0
