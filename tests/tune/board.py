"""A server that takes a folder for its board: ``board.py ROOT`` and the options of ``rt3 rpc-server``."""

import argparse
import sys
from pathlib import Path

from rt3_tvm.cli.options import add_options, given
from rt3_tvm.tune.options import ServerOptions
from rt3_tvm.tune.server import end_with_parent, serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--with-parent", action="store_true")
    add_options(parser, ServerOptions)
    args = parser.parse_args()
    end_with_parent()
    serve(given(ServerOptions, args), print, lambda line: print(line, file=sys.stderr), args.root)
