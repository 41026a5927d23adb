"""``rt3 devices``."""

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser("devices", help="list the devices that come with the package")
    p.set_defaults(drive=drive)


def drive(_args: argparse.Namespace) -> None:
    """Run the command."""
    from rt3_tvm import device

    for name in device.names():
        d = device.load(name)
        cores = ", ".join(f"{c.cores}x {c.core}" for c in d.clusters)
        print(f"{name}: {d.title}; {cores}; {len(d.cluster.opps)} operating points")
