"""usage: resources.py FOLDER TABLE [--update]

Reads what ptxas reported about every kernel (FOLDER/*.log) and its block size (FOLDER/*.ptx), and holds it
against TABLE: a spill, a fall in occupancy, or a kernel that is not in the table fails.
"""

import pathlib
import re
import sys

REGISTERS, WARPS = 65536, 64  # of a multiprocessor
SHARED = {"sm_80": 164, "sm_90a": 228, "sm_100": 228}  # KiB of a multiprocessor
RESERVED = 1024  # bytes of shared memory that every block takes besides its own


def occupancy(arch, threads, registers, shared):
    """Blocks that a multiprocessor holds at once."""
    warps = -(-threads // 32)
    registers_per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // registers_per_warp // warps
    by_shared = SHARED[arch] * 1024 // (shared + RESERVED)
    return min(by_registers, by_shared, WARPS // warps, 32)


def read(folder):
    """Rows of (kernel, arch, threads, registers, shared, spill bytes, blocks)."""
    threads = {}
    for ptx in folder.glob("*.ptx"):
        for name, count in re.findall(r"\.entry (\w+)\(.*?\.maxntid (\d+)", ptx.read_text(), re.S):
            threads[name] = int(count)
    rows = []
    for log in folder.glob("*.log"):
        pattern = (r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
                   r".*?Used (\d+) registers(.*?)\n")
        for name, arch, stores, loads, registers, rest in re.findall(pattern, log.read_text(), re.S):
            shared = re.search(r"(\d+) bytes smem", rest)
            shared = int(shared[1]) if shared else 0
            count, registers = threads[name], int(registers)
            blocks = occupancy(arch, count, registers, shared)
            rows.append([name, arch, count, registers, shared, int(stores) + int(loads), blocks])
    return sorted(rows)


def main():
    folder, table = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    rows = read(folder)
    if not rows:
        sys.exit("no kernels in the logs of ptxas")
    header = "kernel\tarch\tthreads\tregisters\tshared\tspilled\tblocks_per_sm"
    text = "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"
    failures = [f"{row[0]} spills {row[5]} bytes on {row[1]}" for row in rows if row[5] > 0]
    if "--update" in sys.argv:
        table.write_text(text)
    known = {}
    for line in table.read_text().splitlines()[1:]:
        fields = line.split("\t")
        known[fields[0], fields[1]] = int(fields[6])
    for row in rows:
        before = known.pop((row[0], row[1]), None)
        if before is None:
            failures.append(f"{row[0]} on {row[1]} is not in {table}")
        elif row[6] < before:
            failures.append(f"{row[0]} on {row[1]} falls from {before} blocks a multiprocessor to {row[6]}")
    failures += [f"{kernel} on {arch} is in {table}, but was not compiled" for kernel, arch in known]
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        sys.exit("run kernels/cuda/check.sh --update if the change is meant")
    print(f"{len(rows)} kernels: no spills, occupancy as before")


main()
