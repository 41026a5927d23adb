"""``rt3 devices``."""

import argparse
import json
from pathlib import Path

from rt3_tvm.cli.options import add_device_file, chosen_device, console


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    p = commands.add_parser(
        "devices", help="list the devices that come with the package, show one, describe this machine"
    )
    p.add_argument("--json", action="store_true")
    p.set_defaults(drive=drive_list)
    what = p.add_subparsers(dest="what", metavar="WHAT", parser_class=type(p))
    show = what.add_parser("show", help="everything that is known of a device, with its source")
    show.add_argument("name", nargs="?", metavar="NAME")
    show.add_argument("--device", metavar="NAME", help="the same")
    show.add_argument("--cluster", metavar="NAME", help="this one first")
    add_device_file(show)
    show.add_argument("--json", action="store_true")
    show.set_defaults(drive=drive_show)
    probe = what.add_parser("probe", help="write the TOML of the Linux machine this runs on")
    probe.add_argument("-o", "--output", type=Path, metavar="TOML", help="default: print it")
    probe.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="what stands for /; default /")
    probe.set_defaults(drive=drive_probe)


def drive_list(args: argparse.Namespace) -> None:
    """Run ``rt3 devices``."""
    from rt3_tvm import device
    from rt3_tvm.report.devices import device_facts, devices_table

    if args.json:
        print(json.dumps([device_facts(device.load(name)) for name in device.names()]))
    else:
        console().print(devices_table([device.load(name) for name in device.names() if name != "host"]))


def drive_show(args: argparse.Namespace) -> None:
    """Run ``rt3 devices show``."""
    from rt3_tvm import device
    from rt3_tvm.report.devices import device_facts, device_parts

    args.device = args.name or args.device
    found = device.load(chosen_device(args))
    if args.cluster is not None:
        found = found.with_cluster(args.cluster)
    if args.json:
        print(json.dumps(device_facts(found)))
        return
    for part in device_parts(found):
        console().print(part)


def drive_probe(args: argparse.Namespace) -> None:
    """Run ``rt3 devices probe``."""
    import sys

    from rt3_tvm.device.machine import probe
    from rt3_tvm.device.toml_writer import to_toml
    from rt3_tvm.errors import Rt3Error
    from rt3_tvm.files import write_text

    if args.output is not None and args.output.suffix != ".toml":
        raise Rt3Error(f"-o {args.output}: give a file that ends in .toml, as --device-file wants it")
    found = probe(args.root, args.output.stem if args.output else "probed")
    text = to_toml(found.device, found.missing)
    if args.output is None:
        print(text, end="")
    else:
        write_text(args.output, text)
        print(f"{args.output}: {len(found.device.clusters)} clusters")
    for what in found.missing:
        print(f"not known: {what}", file=sys.stderr)
