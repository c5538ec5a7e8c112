"""usage: ptx.py FOLDER COMMITTED [--update]

Holds the PTX in FOLDER/*.ptx against that in COMMITTED/*.ptx.gz, which the program carries; `--update` writes it.
"""

import gzip
import pathlib
import re
import sys

# nvcc names its own version of PTX, which drivers older than itself refuse. The kernels use nothing younger than this,
# which drivers know from 545 on.
VERSION = ".version 8.3"


# What a file keeps to itself is named after a number that nvcc makes of where the file lies.
PRIVATE = re.compile(r"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}_")


def portable(text):
    """The PTX without what differs between two runs of one compiler or hinders older drivers."""
    text, count = re.subn(r"^\.version .*$", VERSION, text, flags=re.M)
    assert count == 1, "one version"
    return PRIVATE.sub(r"\g<1>00000000_", text)


def main():
    made, committed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    sources = {path.name + ".gz": portable(path.read_text()) for path in sorted(made.glob("*.ptx"))}
    if "--update" in sys.argv:
        committed.mkdir(exist_ok=True)
        for path in committed.glob("*.gz"):
            path.unlink()
        for name, text in sources.items():
            # Without name and time, so that equal texts are equal files.
            (committed / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    found = {path.name: gzip.decompress(path.read_bytes()).decode() for path in committed.glob("*.gz")}
    compilers = [
        {line for text in texts.values() for line in text.splitlines() if line.startswith("// Cuda compilation tools")}
        for texts in (sources, found)
    ]
    if compilers[0] != compilers[1]:
        print(f"SKIPPED: the committed PTX is of {compilers[1]}, not of {compilers[0]}", file=sys.stderr)
    elif sources != found:
        stale = sorted(name for name in sources.keys() | found.keys() if sources.get(name) != found.get(name))
        sys.exit(f"{', '.join(stale)} in {committed} is not what the sources make: run kernels/cuda/check.sh --update")
    else:
        size = sum(path.stat().st_size for path in committed.glob("*.gz"))
        print(f"{len(found)} files of PTX are what the sources make, {size // 1000} KB")


main()
