"""``rt3 sdk``: what a C or C++ project needs beside a bundle: headers, a CMake package, a pkg-config file."""

import shutil
from pathlib import Path

from rt3_tvm import __version__
from rt3_tvm.codegen.link import runtime_directory
from rt3_tvm.errors import JobError, Rt3Error
from rt3_tvm.files import write_text, written_whole
from rt3_tvm.runtime.check import check_bundle

HEADERS = ("rt3.h", "rt3.hpp")

CMAKE = """# find_package(rt3 CONFIG) gives the target rt3::{name}
get_filename_component(_rt3_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
if(NOT TARGET rt3::{name})
  add_library(rt3::{name} SHARED IMPORTED)
  set_target_properties(rt3::{name} PROPERTIES
    IMPORTED_LOCATION "${{_rt3_prefix}}/lib/{file}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_rt3_prefix}}/include")
endif()
"""

PKG_CONFIG = """prefix=${{pcfiledir}}/../..
Name: {name}
Description: rt3 bundle {name}
Version: {version}
Cflags: -I${{prefix}}/include
Libs: ${{prefix}}/lib/{file} -Wl,-rpath,${{prefix}}/lib
"""


def write_sdk(bundle: Path, folder: Path) -> list[Path]:
    """Write include/, lib/ and lib/{cmake,pkgconfig} for a bundle into a folder; return the files.

    The CMake target is ``rt3::NAME`` and the pkg-config module ``NAME``, NAME being the bundle's name without suffix.
    """
    check_bundle(bundle, for_this_machine=False)
    if folder.exists() and not folder.is_dir():
        raise Rt3Error(f"'{folder}' is not a directory")
    name = bundle.name.split(".")[0].removeprefix("lib")
    texts = {
        Path("lib/cmake/rt3/rt3-config.cmake"): CMAKE.format(name=name, file=bundle.name),
        Path(f"lib/pkgconfig/{name}.pc"): PKG_CONFIG.format(name=name, file=bundle.name, version=__version__),
    }
    copies = {Path("include") / h: runtime_directory() / h for h in HEADERS} | {Path("lib") / bundle.name: bundle}
    try:
        for relative, text in texts.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / relative, text)
        for relative, source in copies.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(folder / relative) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise JobError(f"cannot write '{folder}': {error.strerror or error}") from error
    return [folder / r for r in (*texts, *copies)]
