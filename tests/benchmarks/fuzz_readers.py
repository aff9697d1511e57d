"""Fuzz the readers: each must refuse a mutated file with one line, or prepare a correct store.

A case takes the small files that a reader's test writes, mutates one of them (cuts, flips, splices
or zeroes bytes) and prepares a store. A one-line `UserError` or a store that matches its manifest
passes. Anything else is a fault and printed with its seed: another exception, a timeout, a file
written outside the store. Cases run in child processes, so that crashes are found too.

Run with `python -P tests/benchmarks/fuzz_readers.py --cases 10000`; the last line is JSON. The exit
code is 1 after a fault.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TESTS = Path(__file__).parents[1] / "datasets" / "readers"
SECONDS = 30
"""Time limit of a case, generous for a loaded machine."""
CHUNK = 250
"""Cases per process."""


def writers() -> dict[str, tuple[Callable[[Path], object], dict[str, str]]]:
    """Return, by reader, the function that writes its files and the options to read them."""
    sys.path.insert(0, str(TESTS))
    import test_arrays
    import test_audiovisual
    import test_digits_large
    import test_huggingface
    import test_mmimdb
    import test_mosei
    import test_ntu_rgbd
    import test_parquet
    import test_ravdess

    def pickled(folder: Path, content: Any) -> None:
        test_mosei.WIDTHS.update(vision=3, audio=4, text=5)
        (folder / "x.pkl").write_bytes(pickle.dumps(content(), 4))

    small = {"vision": 5, "audio": 6, "text": 4}
    return {
        "mosei": (lambda f: pickled(f, lambda: test_mosei.mult(small)), {}),
        "mosi": (lambda f: pickled(f, test_mosei.mmsa), {"labels": "regression"}),
        "mosei csd": (test_mosei.write_csd, {}),
        "mmimdb": (test_mmimdb.write, {"splits": test_mmimdb.SPLITS}),
        "mmimdb attributes": (test_mmimdb.write_with_attributes, {"image_tokens": "16"}),
        "parquet": (lambda f: test_parquet.saved(f, test_parquet.table()), {}),
        "arrays": (lambda f: test_arrays.write(f, "npy"), {}),
        "arrays npz": (lambda f: test_arrays.write(f, "npz"), {}),
        "huggingface": (test_huggingface.save, {"modalities": "sound,picture"}),
        "huggingface sounds": (test_huggingface.save_sounds, {}),
        "ntu_rgbd": (test_ntu_rgbd.write, {}),
        "vggsound": (test_audiovisual.vggsound, {"spec_tokens": "12"}),
        "ravdess": (test_ravdess.write, {}),
        "digits_large": (test_digits_large.write, {}),
    }


def mutate(content: bytes, dice: random.Random) -> bytes:
    """Return a file with a random mutation."""
    if not content:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(9)))
    return dice.choice(MUTATIONS)(bytearray(content), dice)


def _cut(data: bytearray, dice: random.Random) -> bytes:
    return bytes(data[: dice.randrange(len(data) + 1)])


def _scatter(data: bytearray, dice: random.Random) -> bytes:
    for _ in range(dice.choice([1, 2, 8, 64])):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def _flip(data: bytearray, dice: random.Random) -> bytes:
    for _ in range(dice.choice([1, 4])):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def _boundary(data: bytearray, dice: random.Random) -> bytes:
    """Write an integer that is an edge case for sizes."""
    value = dice.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    start = dice.randrange(len(data))
    data[start : start + 8] = value.to_bytes(8, dice.choice(["little", "big"]))
    return bytes(data)


def _drop(data: bytearray, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    del data[start : start + dice.randrange(1, 200)]
    return bytes(data)


def _repeat(data: bytearray, dice: random.Random) -> bytes:
    start, other = dice.randrange(len(data)), dice.randrange(len(data))
    data[start:start] = data[other : other + dice.randrange(1, 300)]
    return bytes(data)


def _zero(data: bytearray, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    stop = min(len(data), start + dice.randrange(1, 400))
    data[start:stop] = bytes(stop - start)
    return bytes(data)


MUTATIONS = (_cut, _scatter, _flip, _boundary, _drop, _repeat, _zero)


def run_case(name: str, clean: Path, work: Path, seed: int, options: dict[str, str]) -> str:
    """Return the result of a case, `refused` or `prepared`.

    Raises:
        Exception: the case is a fault.
    """
    from sftsearch.datasets.errors import UserError
    from sftsearch.datasets.prepare import prepare
    from sftsearch.datasets.reader_catalog import read_source
    from sftsearch.datasets.spec import SPLITS
    from sftsearch.datasets.store import open_store, verify

    dice = random.Random(seed)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(clean, work / "source")
    files = sorted(path for path in (work / "source").rglob("*") if path.is_file())
    chosen = dice.choice(files)
    chosen.write_bytes(mutate(chosen.read_bytes(), dice))
    path = work / "source"
    pickles = list(path.glob("*.pkl"))
    given = [f"{key}={value}" for key, value in options.items()]
    try:
        source = read_source(name.split()[0], pickles[0] if pickles else path, given)
        nan, bad = dice.choice(["zero", "drop", "fail"]), dice.choice(["drop", "fail"])
        done = prepare("fuzzed", source, work / "store" / "fuzzed", nan=nan, bad=bad)  # type: ignore[arg-type]
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            raise RuntimeError(f"not one line: {error}") from error
        return "refused"
    store = open_store(done.path)
    verify(store)
    for split in SPLITS:
        for tokens in store.split(split, unseal_test=True).modalities.values():
            tokens[:]
    return "prepared"


def run_chunk(first: int, count: int, folder: Path) -> None:
    """Run cases in this process; print a line per fault and the counts."""
    faulthandler.enable()
    logging.disable()
    signal.signal(signal.SIGALRM, _late)
    chosen = list(writers().items())
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        name, (write, options) = chosen[seed % len(chosen)]
        clean = folder / f"clean {name}"
        if not clean.exists():
            clean.mkdir()
            write(clean)
        print(f"case {seed} {name}", file=sys.stderr, flush=True)
        signal.alarm(SECONDS)
        try:
            counts[run_case(name, clean, folder / "work", seed, options)] += 1
        except BaseException:
            print(f"FAULT {seed} {name}: {traceback.format_exc(limit=-6)}", flush=True)
            counts["fault"] += 1
        finally:
            signal.alarm(0)
    left = {path.name for path in folder.iterdir() if not path.name.startswith("clean ")}
    if left - {"work"}:
        print(f"FAULT {first}: wrote {left}", flush=True)
        counts["fault"] += 1
    print(json.dumps(counts))


def _late(number: int, frame: object) -> None:
    raise TimeoutError(f"a case takes more than {SECONDS} s")


def main() -> int:
    """Run the cases in child processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk:
        with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
            run_chunk(options.first, options.chunk, Path(folder))
        return 0
    counts: Counter[str] = Counter()
    start = time.monotonic()
    for first in range(options.first, options.first + options.cases, CHUNK):
        count = min(CHUNK, options.first + options.cases - first)
        command = [sys.executable, "-P", __file__, "--first", str(first), "--chunk", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        for line in lines[:-1] if done.returncode == 0 else lines:
            print(line)
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.startswith("case ")][-1:]
            print(f"FAULT: a process ended with {done.returncode} at {last}\n{done.stderr[-2000:]}")
            counts["fault"] += 1
        else:
            counts.update(json.loads(lines[-1]))
    print(json.dumps({"cases": options.cases, **counts, "seconds": time.monotonic() - start}))
    return 1 if counts["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
