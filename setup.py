"""The parts that are compiled, where there is a compiler; all else stands in setup.cfg.

Without `_nursery` results that are large arrays are copied into shared memory, instead of being
born there; without `_walking` what a client pays for a task is about twice as much, and without
`_scans` graphs of a million tasks begin some tenths of a second later.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "dagsched.brokers.objects._nursery",
            ["brokers/objects/_nursery.c"],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=["-std=c11", "-pthread"],
            optional=True,
        ),
        Extension(
            "dagsched._walking",
            ["dagsched/_walking.c"],
            extra_compile_args=["-std=c11"],
            optional=True,
        ),
        Extension(
            "dagsched.partition._scans",
            ["dagsched/partition/_scans.c"],
            extra_compile_args=["-std=c11"],
            optional=True,
        ),
    ]
)
