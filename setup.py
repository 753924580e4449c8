"""The one part that is compiled, where there is a compiler; all else stands in setup.cfg.

Without it results that are large arrays are copied into shared memory, instead of being born there.
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
        )
    ]
)
