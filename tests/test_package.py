"""What is distributed: the package and nothing else, and it works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    kept = f"git -C {ROOT} ls-files -z --cached --others --exclude-standard".split()
    for name in subprocess.run(kept, check=True, capture_output=True).stdout.split(b"\0"):
        path = name.decode()
        if path and (ROOT / path).is_file():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes((ROOT / path).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", place, source], check=True)
    return next(place.glob("pgprobe-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"probe"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "probe").rglob("*.py")}
    schemas = {f"probe/reports/{name}schema.json" for name in ("", "read.", "replay.")}
    data = {"probe/py.typed", *schemas}
    assert {name for name in names if name.startswith("probe/")} == modules | data


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    site = tmp_path / "site"
    subprocess.run([*pip, "--no-deps", "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import probe.reports, sys; print(probe.reports.__file__)"
    for arguments in (["-c", where], ["-m", "probe", "rules"], ["-m", "probe", "explain", "N201"]):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout
        if arguments[0] == "-c":
            assert done.stdout.startswith(str(site))
