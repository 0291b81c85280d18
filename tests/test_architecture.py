"""The order of imports, and what may be imported where: read from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe

ORDER = """
    wire transcript certificate handshake witness finding conninfo password target attempt fate
    evidence binding refusal signs path login tls identity schedule ends window pcapng note captured
    packet datagram flow store stream gather split processes secrets cipher decryption blocks
    recording drivers sources ladder observer rules clients verdict door diagnosis sighting clock
    matching hop vantage alike digest reading replay visit recorder reports commands __main__
""".split()

PRODUCTS = {
    *"witness ladder observer rules reports fate evidence binding refusal signs path".split(),
    *"clients verdict door diagnosis sighting clock matching hop vantage alike".split(),
    *"digest reading replay".split(),
}
MAKERS = {
    *"drivers sources login tls identity schedule pcapng packet flow stream gather split".split(),
    *"cipher datagram decryption processes recording visit recorder store window blocks".split(),
}

THIRD_PARTY = {  # and the only modules that may import it
    "click": "probe.commands",
    "cryptography": "probe.cipher probe.identity",
    "tabulate": "probe.reports.table",
}

ROOT = Path(probe.__file__).parent


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}
NAMES = sorted(MODULES.keys() - {"probe"})


def imported_by(module: str) -> Iterator[str]:
    """The full name of each module that this one imports, wherever in its text."""
    file = MODULES[module]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            assert node.module
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in below)


def own(module: str) -> list[str]:
    """The modules of probe that it imports; the version is anyone's."""
    return [name for name in imported_by(module) if name.startswith("probe.")]


def station(module: str) -> str:
    return module.split(".")[1]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def allowed(module: str, package: str) -> bool:
    return any(within(module, place) for place in THIRD_PARTY[package].split())


def test_every_module_has_its_place_in_the_order() -> None:
    assert {station(module) for module in NAMES} == set(ORDER)


@pytest.mark.parametrize("module", NAMES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    here = station(module)
    for name in own(module):
        if station(name) == here:
            assert name == f"probe.{here}", f"{module} imports its sibling {name}"
        else:
            assert ORDER.index(station(name)) < ORDER.index(here), f"{module} imports {name}"


def test_the_package_itself_imports_nothing() -> None:
    assert list(imported_by("probe")) == []


@pytest.mark.parametrize("module", [name for name in NAMES if station(name) == "wire"])
def test_wire_imports_only_the_standard_library(module: str) -> None:
    strange = {name.partition(".")[0] for name in imported_by(module)} - {"probe"}
    assert strange <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in NAMES if station(name) in PRODUCTS])
def test_no_product_imports_a_maker(module: str) -> None:
    assert not {station(name) for name in own(module)} & MAKERS


@pytest.mark.parametrize("module", NAMES)
def test_a_third_party_package_is_imported_where_it_belongs_and_nowhere_else(module: str) -> None:
    packages = {name.partition(".")[0] for name in imported_by(module)}
    strange = packages - sys.stdlib_module_names - {"probe"}
    assert strange <= THIRD_PARTY.keys()
    assert all(allowed(module, package) for package in strange)


@pytest.mark.parametrize("module", [name for name in NAMES if station(name) in PRODUCTS | {"wire"}])
def test_neither_products_nor_codecs_touch_sockets_clocks_or_files(module: str) -> None:
    edge = {"socket", "ssl", "select", "selectors", "time", "threading", "subprocess", "asyncio"}
    assert not edge & set(imported_by(module))
    text = MODULES[module].read_text(encoding="utf-8")
    assert not re.search(r"\b(date|datetime)\.(now|utcnow|today)\(", text)


def imported_with(module: str) -> set[str]:
    """What a fresh interpreter has imported once it has imported this module."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return set(done.stdout.split())


def test_help_costs_no_more_than_click() -> None:
    imported = imported_with("probe.commands")
    assert not imported & {"cryptography", "tabulate", "ssl", "asyncio"}
    assert {name for name in imported if within(name, "probe")} == {"probe", "probe.commands"}


@pytest.mark.parametrize("module", ["probe.observer", "probe.wire.messages"])
def test_reading_needs_neither_ssl_nor_sockets(module: str) -> None:
    assert not imported_with(module) & {"ssl", "socket", "selectors", "cryptography"}


def test_probing_does_not_import_what_only_others_need() -> None:
    imported = imported_with("probe.commands.probe, probe.reports.text")
    slow = {"cryptography", "tabulate", "json", "statistics", "tempfile", "stringprep", "asyncio"}
    assert not imported & (slow | {"concurrent.futures", "multiprocessing"})
    assert not imported & {"probe.reading", "probe.vantage", "probe.recorder", "probe.stream"}
