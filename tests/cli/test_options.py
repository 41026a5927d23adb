"""Options are said once: the command line, the documentation and the messages follow from the fields."""

import ast
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rt3_tvm.cli.main import apply_config, build_parser, main, options_of
from rt3_tvm.cli.options import given
from rt3_tvm.cli.reference import PAGES, reference
from rt3_tvm.codegen import CompileOptions
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.options import SHAPE, default_of, options_in
from rt3_tvm.search import SearchOptions

ROOT = Path(__file__).parent.parent.parent
OPTIONS = [
    pytest.param(o, path, f, what, id=f"{o.__name__}.{path}") for o in PAGES.values() for path, f, what in options_in(o)
]


def test_the_page_of_options_is_what_the_fields_say():
    """Where it fails: python -m rt3_tvm.cli.reference > docs/options.md."""
    assert (ROOT / "docs/options.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize(("options", "path", "field", "what"), [o for o in OPTIONS if default_of(*o.values[2:])])
def test_a_default_is_read_as_it_is_written(options, path, field, what):
    written = default_of(field, what)
    default = replace(field.default, group=1) if what.kind is SHAPE else field.default
    assert what.kind.read(written) == default and what.kind.write(default) == written


@pytest.mark.parametrize("options", PAGES.values(), ids=lambda o: o.__name__)
def test_every_field_is_documented_and_an_option(options):
    for f in fields(options):
        assert "option" in f.metadata or "phase" in f.metadata
        assert "option" not in f.metadata or f"\n{f.name}\n    " in options.__doc__


def test_the_command_line_has_every_field(capsys):
    parsers = build_parser()[1]
    for command, options in (("search", SearchOptions), ("compile", CompileOptions)):
        known = {a.dest for a in options_of(parsers[command])}
        assert {path for path, _, _ in options_in(options)} <= known


def test_messages_name_fields_and_the_command_line_shows_its_options(capsys):
    with pytest.raises(Rt3Error, match=r"^deadline_s -1\.0 s must be finite"):
        CompileOptions(deadline_s=-1.0)
    error = Rt3Error("`block_rows` 3, `reward.shares` and `nothing`")
    assert str(error) == "block_rows 3, reward.shares and nothing"
    assert (
        error.shown({"block_rows": "--block-rows", "reward.shares": "--shares"})
        == "--block-rows 3, --shares and nothing"
    )
    assert str(JobError("`output` is full")) == "output is full"
    assert (
        main(
            [
                "search",
                "minilm",
                "--task",
                "sts",
                "--device",
                "odroid-xu3",
                "-o",
                "x",
                "--deadline",
                "9",
                "--shares",
                "1,2",
            ]
        )
        == 2
    )
    assert "rt3: error: --shares 0.01,0.02: give one above 0 for each of 3 levels" in capsys.readouterr().err


def test_a_configuration_names_options_as_they_are_typed(tmp_path):
    (tmp_path / "rt3.toml").write_text(
        "[compile]\nno-cache = true\nno-verify = false\ndeadline = 5\nseq_len = '8,16'\n"
    )
    parser, parsers = build_parser()
    apply_config(tmp_path / "rt3.toml", parsers)
    options = given(CompileOptions, parser.parse_args(["compile", "m.ckpt", "-o", "m.so"]))
    assert (options.cache, options.verify, options.deadline_s, options.lengths) == (False, True, 0.005, (8, 16))


@pytest.mark.parametrize(("written", "read"), [('"pooler*"', ("pooler*",)), ('["a*", "b"]', ("a*", "b"))])
def test_a_configuration_has_one_or_several_of_what_is_repeated(tmp_path, written, read):
    (tmp_path / "rt3.toml").write_text(f"[prune]\nexclude = {written}\n")
    parser, parsers = build_parser()
    apply_config(tmp_path / "rt3.toml", parsers)
    assert tuple(parser.parse_args(["prune", "random-tiny", "-o", "c"]).exclude) == read


def messages(path: Path) -> set[str]:
    """Return the constant texts of everything that a file raises."""
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    raised = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id in ("Rt3Error", "JobError")]
    parts = [part for n in raised for part in ast.walk(n)]
    return {c.value for c in parts if isinstance(c, ast.Constant) and isinstance(c.value, str)}


def library() -> list[Path]:
    own = [p for p in (ROOT / "rt3_tvm").rglob("*.py") if "cli" not in p.parts]
    return sorted([*own, *(ROOT / "schedules").rglob("*.py")])


@pytest.mark.parametrize("path", library(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_message_of_the_library_names_an_option(path):
    named = [m for m in messages(path) if re.search(r"(?<![\w-])(--[a-z]|-[ov]\b)", m)]
    assert not named


LIGHT = [["--help"], ["search", "--help"], ["compile", "--help"], ["devices"], ["devices", "show", "rk3399"]]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_help_and_devices_need_neither_torch_nor_tvm(arguments):
    code = (
        "import sys\nfrom rt3_tvm.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "print('HEAVY', sorted({'torch', 'tvm', 'transformers'} & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "HEAVY [] 0" in done.stdout
