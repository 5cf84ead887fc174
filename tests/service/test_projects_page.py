"""PROJECTS.md: what it shows is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.access import KEY

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "PROJECTS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)


def test_every_command_of_the_page_runs_in_its_order(start, tmp_path):
    programs, repository, data = tmp_path / "programs", tmp_path / "repository", tmp_path / "data"
    programs.mkdir()
    repository.mkdir()
    (programs / "softgauge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -c "from service.cli import main; main()" "$@"\n')
    (programs / "softgauge").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SOFTGAUGE_DATA_DIR": str(data),
    }
    said = []
    with start(workers=1, data_dir=str(data)) as client:
        for block in BLOCKS:
            script = block.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/")).replace(
                "curl -s", "curl -sS --fail-with-body"
            )
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=repository, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (block, done.stdout, done.stderr)
            said.append(done.stdout)
    first, accepted, checked, read, keys, projects = said
    assert "pass: 6 cases of attention 4f1c2ab: 6 new" in first
    assert "baseline default of main points to" in accepted
    assert '"verdict": "regressed"' in checked or '"verdict": "incomparable"' in checked
    assert '"runs":' in read
    assert "case,at,branch" in read
    assert "<svg" in read
    assert KEY.fullmatch(keys.splitlines()[0])
    assert "write  active until" in keys
    assert projects.startswith("attention  3 runs")
    assert "0 runs would be removed" in projects
    assert (repository / "attention.gz").exists()


@pytest.mark.parametrize("place", re.findall(r"\]\(([A-Za-z.]+)?#([a-z-]+)\)", TEXT))
def test_links_lead_somewhere(place):
    name, anchor = place
    headings = re.findall(r"^#+ (.*)$", (ROOT / (name or "PROJECTS.md")).read_text(), re.M)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
