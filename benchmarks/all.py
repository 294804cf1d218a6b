"""The whole table of speed, goal beside figure: every benchmark that has goals, one after the other.

    python benchmarks/all.py [--quick] [--only train_step decoding] [--out FILE]

Each runs in a process of its own; a benchmark that fails is named at the end, and the exit status is 1 (a goal that is
missed is no failure). With --quick, on two cores, it takes at most 15 minutes. How to read it: docs/benchmarks.md.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from measure import ROW, Row, load, machine, table_head, table_line

HERE = Path(__file__).parent
# what the table replaces in a file that has both
BEGIN, END = "<!-- python benchmarks/all.py begins -->", "<!-- python benchmarks/all.py ends -->"
# in the order of the table
NAMES = (
    "train_step",
    "scoring",
    "attention",
    "glue",
    "compiled",
    "decoders",
    "decoding",
    "forward",
    "sampling",
    "start_up",
)


def main() -> int:
    options = _options()
    lines = [machine(), ""]
    print(*lines, sep="\n", flush=True)
    failed = []
    for name in options.only or NAMES:
        start = time.perf_counter()
        head = [f"### {name}", "", *table_head()]
        print(*head, sep="\n", flush=True)
        rows, error = rows_of(name, quick=options.quick)
        if error:
            failed.append(f"{name}: {error}")
        # the load at its end is that of the work itself, and of others
        after = f"{time.perf_counter() - start:.0f} s, load {load()} at the end"
        lines += [*head, *map(table_line, rows), "", f"{after}. {f'Failed: {error}' if error else ''}".rstrip(), ""]
        print(f"\n{name}: {after}\n", flush=True)
    print(*failed, sep="\n", file=sys.stderr)
    if options.out:
        write(Path(options.out), "\n".join(lines).rstrip())
    return 1 if failed else 0


def write(path: Path, table: str) -> None:
    """Write the table: between the marks of a file that has them, such as RESULTS.md, or as a new file."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN) if path.exists() else ("", "", "")
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}".lstrip("\n"), encoding="utf-8")


def rows_of(name: str, *, quick: bool) -> tuple[list[Row], str]:
    """What one benchmark measured, printed as it comes, and the last line of its error, or ""."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *(["--quick"] if quick else [])]
    rows, said = [], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ROW):
                rows.append(Row(**json.loads(line)))
                print(table_line(rows[-1]), flush=True)
            else:
                said = line.strip() or said
    return rows, "" if process.returncode == 0 else said or f"exit status {process.returncode}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the rows that have a goal, in few rounds")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", help="write the table there too, or between the marks of that file")
    options = parser.parse_args()
    if options.out and Path(options.out).exists() and END not in Path(options.out).read_text(encoding="utf-8"):
        parser.error(f"--out: {options.out} is there and has no marks {BEGIN} ... {END}; name another file")
    if options.out and not Path(options.out).resolve().parent.is_dir():
        parser.error(f"--out: the folder of {options.out} is not there")
    if options.out and options.only and Path(options.out).exists():
        parser.error("--out: a file that is there gets the whole table; leave --only out, or name another file")
    return options


if __name__ == "__main__":
    sys.exit(main())
