"""Pages that must name everything there is: rooms, families, functions of the C API."""

import re
from pathlib import Path

from rt3_tvm.codegen.link import runtime_directory
from rt3_tvm.schedules import SCHEDULES
from tests.test_architecture import ORDER

DOCS = Path(__file__).parent.parent / "docs"


def named_in(page: str) -> set[str]:
    """Return what a page has between backquotes, folders without their slash."""
    return {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", (DOCS / page).read_text(encoding="utf-8"))}


def test_every_function_of_the_header_is_on_the_page_of_the_c_api():
    header = (runtime_directory() / "rt3.h").read_text(encoding="utf-8")
    functions = set(re.findall(r"^RT3_API .*?(rt3_\w+)\(", header, re.MULTILINE))
    assert functions and functions <= named_in("c-api.md")


def test_every_family_is_on_the_page_of_the_kernels():
    assert SCHEDULES.keys() <= named_in("kernels.md")


def test_every_room_is_on_the_page_of_the_architecture():
    assert set(ORDER) <= named_in("architecture.md")


def test_links_between_pages_lead_somewhere():
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
