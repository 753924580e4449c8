"""Dask's own tests on our scheduler: which, how they are run, and those that can't pass.

    python -m tests.frontends.own [--share] [--scheduler dagsched | processes] [MODULE ..]

What is asked is that a test which passes with Dask's multiprocessing scheduler passes with ours.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dask

ROOT = Path(__file__).resolve().parents[2]

MODULES = ("dask.tests.test_delayed", "dask.bag", "dask.array", "dask.dataframe")

SHARE = ("dask.tests.test_delayed", "dask.bag.tests.test_bag", "dask.array.tests.test_rechunk",
         "dask.dataframe.dask_expr.tests.test_indexing")  # fmt: skip
"""What `make test` runs."""

SHARED_MEMORY = "needs to change, or to count in, the memory of the test's own process"
OTHERS_LOCK = "a lock that only one process has can't travel"
OTHER_PROCESS = "looks for warnings or errors that are raised in another process"
ORDER = "fails with every scheduler in this release"
GENERATOR = "generators can't travel"
NETWORK = "needs the network, or packages that aren't installed"

EXPLAINED = {
    r"test_delayed\.py::test_traverse_false": SHARED_MEMORY,
    r"test_bag\.py::test_take_npartitions_warn": OTHER_PROCESS,
    r"test_bag\.py::test_to_delayed_optimize_graph": SHARED_MEMORY,
    r"test_bag\.py::test_from_delayed_iterator": SHARED_MEMORY,
    r"test_bag\.py::test_repartition_partition_size_complex_dtypes": ORDER,
    r"test_bag\.py::test_bag_with_single_callable": "a copy of a function is another function",
    r"test_bag\.py::test_reductions_are_lazy": GENERATOR,
    r"test_text\.py::test_(read_text(\[|_unicode_no_coll)|files_per_part)": GENERATOR,
    r"test_bag\.py::test_temporary_directory": "looks for files that Dask leaves; ours are removed",
    r"_array_expr/tests/test_collection\.py::test_(blockwise|is_dask_collection_doesnt)": ORDER,
    r"test_array_core\.py::test_store(_delayed_target|_regions|_compute_false|_sources)?": (
        SHARED_MEMORY
    ),
    r"test_array_core\.py::test_store_locks": OTHERS_LOCK,
    r"test_array_core\.py::test_from_array_with_lock": OTHERS_LOCK,
    r"test_array_core\.py::test_(from_array_getitem|memmap)": SHARED_MEMORY,
    r"test_array_core\.py::test_binary_operator_delegation": NETWORK,
    r"test_reductions\.py::test_array_cumreduction_axis\[blelloch-None": OTHER_PROCESS,
    r"test_reductions\.py::test_nanquantile_all_nan": OTHER_PROCESS,
    r"test_routines\.py::test_tensordot_more_than_26_dims": (
        "a constant of 1 GB takes a busy machine's node longer to take than its lease"
    ),
    r"test_routines\.py::test_average_raises": OTHER_PROCESS,
    r"test_wrap\.py::test_full_detects_da_dtype": OTHER_PROCESS,
    r"test_ufunc\.py::test_frompyfunc": "a ufunc that numpy made of a function can't travel",
    r"test_io\.py::test_from_map_column_projection": SHARED_MEMORY,
    r"test_fusion\.py::test_fusion_executes_only_once": SHARED_MEMORY,
    r"test_dataframe\.py::test_head_npartitions_warn": OTHER_PROCESS,
    r"test_collection\.py::test_head( |$)": OTHER_PROCESS,
    r"test_extensions\.py::test_register_extension_type": "a copy of a type isn't equal to it",
    r"test_shuffle\.py::test_disk_shuffle_with_unknown_compression": (
        "what a process sets in Dask's configuration isn't set in others; forked ones have a copy"
    ),
    r"test_parquet\.py::test_filter_isna": "looks for the one nan of numpy; a copy is another",
    r"test_orc": NETWORK,
    r"test_parquet\.py::test_(pyarrow_filesystem_option_real_data|fsspec_to_parquet)": NETWORK,
}
"""By pattern of the test's id: why it fails, here and with Dask's multiprocessing scheduler."""


def command(modules: Sequence[str]) -> list[str]:
    """Runs Dask's tests, as they are installed, in a process of their own."""
    return [
        sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider",
        "-p", "no:valkey", "-p", "tests.frontends.scheduling", "-c", os.devnull,
        "--rootdir", str(Path(dask.__file__).parent), "--timeout", "600",
        "-W", "ignore::DeprecationWarning", "--pyargs", *modules,
    ]  # fmt: skip


def run(modules: Sequence[str], scheduler: str = "dagsched") -> "subprocess.CompletedProcess[str]":
    """The tests of modules of Dask."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSCHED_DASK_SCHEDULER": scheduler}
    return subprocess.run(
        command(modules), env=env, cwd="/", capture_output=True, text=True, check=False
    )


def failures(output: str) -> list[str]:
    """Ids of the tests that failed."""
    return re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)


def unexplained(output: str) -> list[str]:
    """Those of them for which there is no reason."""
    return [test for test in failures(output) if not any(re.search(p, test) for p in EXPLAINED)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", default=None)
    parser.add_argument("--share", action="store_true", help="what make test runs")
    parser.add_argument("--scheduler", default="dagsched", choices=["dagsched", "processes"])
    args = parser.parse_args()
    done = run(args.modules or (SHARE if args.share else MODULES), args.scheduler)
    print(done.stdout)
    found = unexplained(done.stdout)
    print(f"{len(failures(done.stdout))} failed, {len(found)} of them without an explanation")
    for test in found:
        print(f"    {test}")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
