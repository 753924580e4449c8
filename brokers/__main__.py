"""A broker's process: ``python -m dagsched.brokers``, told what it is by one line of JSON on stdin.

Standard input stays open afterwards: its end says that whoever started the broker is gone. The
order of what is imported when matters: the zygote is forked after what executors need has been
loaded, and before the broker has threads and sockets.
"""

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from dagsched.brokers.launch import BrokerSettings, restore_python_path

LINE_BYTES_MAX = 1 << 24

SLOTS_MIN = 8
"""So many executors of a node hand values over to each other, even if it begins with fewer."""


def main() -> int:
    """Run a broker until it ends.

    Returns:
        its exit code: 0, or 70 after an internal error, 2 for settings that can't be read.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    restore_python_path()
    line = read_line(0)
    if not line:
        return 0  # whoever started us is gone already
    try:
        settings = BrokerSettings.from_line(line)
    except (ValueError, TypeError) as error:
        sys.stderr.write(f"a broker's settings are a line of JSON; this is none: {error}\n")
        return 2
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if settings.debug else logging.INFO,
        format=f"%(asctime)s %(levelname)s broker {settings.broker} %(message)s",
    )
    return _serve(settings)


def _serve(settings: BrokerSettings) -> int:
    from dagsched.brokers.executor import ExecutorSettings, executor_main
    from dagsched.brokers.handover import SLOTS_MAX
    from dagsched.brokers.objects.segments import default_store_bytes, prepare_spill
    from dagsched.brokers.zygote import fork_zygote
    from dagsched.plan import ClusterShape

    if settings.config.store_bytes_max is None:
        config = replace(settings.config, store_bytes_max=default_store_bytes())
        settings = replace(settings, config=config)
    spill = prepare_spill(Path(settings.run_directory), settings.config.spill_directory)
    executor_settings = ExecutorSettings(
        name_prefix=settings.name_prefix,
        sys_path=settings.sys_path,
        cwd=settings.cwd,
        config=settings.config,
        broker_pid=os.getpid(),
        token=settings.env_token,
        shape=ClusterShape(settings.nodes, settings.executors),
        spill_directory=str(spill),
        profiled_broker=settings.broker if settings.profile else 0,
    )
    private = [settings.alive_fd] if settings.alive_fd >= 0 else []
    slot_count = min(SLOTS_MAX, max(SLOTS_MIN, 2 * settings.executors))
    forked = fork_zygote(
        executor_main, executor_settings, settings.name_prefix, private, slot_count
    )
    # Only now what starts threads or opens sockets.
    from dagsched.brokers.shell import BrokerShell

    return BrokerShell(settings, forked, lifeline_fd=0).run()


def read_line(fd: int) -> bytes:
    """Read up to the end of a line, and not one byte further; empty: there is none."""
    line = bytearray()
    while len(line) < LINE_BYTES_MAX:
        byte = os.read(fd, 1)
        if not byte:
            return b""
        if byte == b"\n":
            return bytes(line)
        line += byte
    return bytes(line)


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # All that was begun has been ended; taking the interpreter apart would only take time.
    os._exit(exit_code)
