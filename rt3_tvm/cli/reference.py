"""``docs/options.md``: every option of a dataclass, on the command line and in Python.

Written by ``python -m rt3_tvm.cli.reference > docs/options.md``; a test holds the two together.
"""

from collections.abc import Iterator

from rt3_tvm.bench.options import LatencyOptions
from rt3_tvm.codegen.options import CompileOptions
from rt3_tvm.energy.comparison import SimulateOptions
from rt3_tvm.options import default_of, explained, flag_of, options_in
from rt3_tvm.prune.options import PruneOptions
from rt3_tvm.search.options import SearchOptions, first_phases
from rt3_tvm.tune.options import RemoteOptions, ServerOptions, TuneOptions

PAGES: dict[str, type] = {
    "rt3 prune": PruneOptions,
    "rt3 search": SearchOptions,
    "rt3 compile": CompileOptions,
    "rt3 simulate, rt3 report": SimulateOptions,
    "rt3 bench latency": LatencyOptions,
    "rt3 tune": TuneOptions,
    "rt3 run, rt3 bench model": RemoteOptions,
    "rt3 rpc-server": ServerOptions,
}
HEAD = """# Options

What is typed, and the field of the dataclass that has the same in Python. A unit in brackets is the field's, where the text has
another one; "False:" says what a switch does that turns a field off. `rt3 COMMAND --help` says the rest. Messages name the field
in Python and the option on the command line. A TOML file with a table for each command sets defaults (`rt3 --config FILE`): its
keys are the options without dashes.
"""


def reference() -> str:
    """Return the page."""
    return "\n".join([HEAD, *(line for command, options in PAGES.items() for line in _table(command, options))])


def _table(command: str, options: type) -> Iterator[str]:
    """Yield the lines of the table of a command; that of a search says from which phase on an option matters."""
    phases = first_phases() if options is SearchOptions else {}
    yield f"## `{command}`: `{options.__name__}`\n"
    yield "| option | field | what | default |" + (" matters from |" if phases else "")
    yield "|---|---|---|---|" + ("---|" if phases else "")
    for path, f, what in options_in(options):
        typed = f"{flag_of(path, what)} {what.kind.metavar}" if what.kind else flag_of(path, what)
        cells = [f"`{typed}`", f"`{path}`", explained(f, what), default_of(f, what)]
        if phases:
            cells.append(phases[path.partition(".")[0]])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    print(reference(), end="")
