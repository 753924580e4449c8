"""The broker processes of one environment: started, known, ended.

Responsible for the client's side of broker processes only: what they are told at start, and that
none of them outlives the environment. What they do is the brokers' own affair.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagsched.brokers.launch import GOODBYE, BrokerSettings, Lifeline, launch_broker
from dagsched.config import Config
from dagsched.nodes import NodeEnv
from dagsched.rundir import RunNames

logger = logging.getLogger(__name__)

_LOG_TAIL_BYTES = 4096


class AdoptedProcess:
    """A broker that is no child of ours, with as much of `subprocess.Popen` as we need.

    Args:
        pid: of the process, which is sure to be it.

    Raises:
        ProcessLookupError: it has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """0 once it has ended: how, only its parent is told."""
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """`returncode`, up to date."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        if self.returncode is None:
            waiter = select.poll()
            waiter.register(self._pidfd, select.POLLIN)
            if not waiter.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired("broker", timeout or 0.0)
            self.returncode = 0
        return self.returncode

    def terminate(self) -> None:
        """Have it leave, if it is there."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def close(self) -> None:
        """Forget it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self.returncode = 0


@dataclass(slots=True)
class BrokerProcess:
    """A broker that was started, and what its names begin with."""

    node: NodeEnv
    process: "subprocess.Popen[bytes] | AdoptedProcess"
    segment_prefix: str
    log_path: Path
    lifeline: Lifeline | None = None
    """None: another client has started it."""


class BrokerProcesses:
    """All broker processes that one environment has started.

    Args:
        names: of the environment.
        config: goes to each broker.
        debug: brokers log every decision.
        profile: brokers and executors write a profile of each run.
        listen: ``tcp://HOST`` for TCP between master and brokers; None: Unix sockets.
    """

    def __init__(
        self,
        names: RunNames,
        config: Config,
        *,
        debug: bool = False,
        profile: bool = False,
        listen: str | None = None,
    ) -> None:
        self.are_resumable = False
        self.master_address = ""
        """Of the master, where it listens on TCP."""

        self.keys: list[str] = []
        self._listen = listen or ""
        self._names = names
        self._config = config
        self._debug = debug
        self._profile = profile
        self._started: list[BrokerProcess] = []
        # The master's thread closes lifelines of brokers that end while all are being let go.
        self._lifelines = threading.Lock()

    def launch(self, node: NodeEnv, nodes: Sequence[NodeEnv]) -> BrokerProcess:
        """Start the broker of `node`, one of the environment's `nodes`.

        If an older process of that id is still on its way out, its names aren't used again.
        """
        incarnation = 1 + sum(old.node.brokerid == node.brokerid for old in self._started)
        prefix = self._names.broker_prefix(node.brokerid, incarnation)
        command_prefix, own_listen = place_broker(node)
        settings = BrokerSettings(
            broker=node.brokerid,
            host=node.host,
            env_token=self._names.token,
            name_prefix=prefix,
            run_directory=str(self._names.directory),
            master_socket=str(self._names.master_socket),
            data_socket=str(self._names.broker_socket(node.brokerid, incarnation)),
            sys_path=import_path(),
            cwd=working_directory(),
            nodes=len(nodes),
            executors=sum(len(other.executorids) for other in nodes),
            is_resumable=self.are_resumable,
            config=self._config,
            debug=self._debug,
            profile=self._profile,
            master_address=self.master_address,
            listen=own_listen or self._listen,
            keys=self.keys,
        )
        process, lifeline = launch_broker(settings, dict(os.environ), command_prefix)
        log_path = self._names.directory / f"broker-{node.brokerid}.log"
        started = BrokerProcess(node, process, prefix, log_path, lifeline)
        self._started.append(started)
        return started

    def latest(self, broker: int) -> BrokerProcess | None:
        """The last process started for a broker's id."""
        return next((b for b in reversed(self._started) if b.node.brokerid == broker), None)

    def own(self) -> list[tuple[int, str]]:
        """Processes that were started here and have not ended: pid, and start of segment names."""
        return [
            (started.process.pid, started.segment_prefix)
            for started in self._started
            if started.process.returncode is None
            and not isinstance(started.process, AdoptedProcess)
        ]

    def adopt(self, node: NodeEnv, pid: int, segment_prefix: str, directory: Path) -> BrokerProcess:
        """Take over a broker that another client has started; it ends with those started here.

        Raises:
            ProcessLookupError: it has ended.
        """
        adopted = BrokerProcess(node, AdoptedProcess(pid), segment_prefix, directory / "broker.log")
        self._started.append(adopted)
        return adopted

    def end_latest(self, broker: int) -> None:
        """Kill what is left of a broker's last process, and wait for that."""
        older = self.latest(broker)
        if older is not None and older.process.poll() is None:
            kill_group(older.process)
            older.process.wait(self._config.close_timeout_s)

    def describe_exit(self, broker: int, return_code: int) -> str:
        """In words, why a broker's process has ended, with the end of its log."""
        how = f"signal {-return_code}" if return_code < 0 else f"exit code {return_code}"
        started = self.latest(broker)
        said = _tail(started.log_path) if started is not None and return_code > 0 else ""
        return f"its broker's process ended with {how}" + (f"; it said: {said}" if said else "")

    def close_lifelines(self) -> None:
        """Of processes that have ended: an environment that lasts sees many nodes come and go."""
        for started in self._started:
            if started.lifeline is not None and started.process.returncode is not None:
                with self._lifelines:
                    started.lifeline.close()

    def let_go(self) -> None:
        """Let the lifelines of all brokers end: they clean up and leave."""
        for started in self._started:
            if started.lifeline is None:
                started.process.terminate()
                continue
            with self._lifelines:
                _say_goodbye(started, started.lifeline)

    def end_all(self, timeout_s: float) -> None:
        """Wait for all brokers to leave; those that don't are killed, with their executors."""
        self.let_go()
        deadline = time.monotonic() + timeout_s
        for started in self._started:
            try:
                started.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning(
                    "broker %d did not leave within %s s and is killed",
                    started.node.brokerid,
                    timeout_s,
                )
                kill_group(started.process)
                started.process.wait()
            if isinstance(started.process, AdoptedProcess):
                started.process.close()

    def forget_after_fork(self) -> None:
        """In a forked child: close our copies of the lifelines, so that brokers see their end."""
        for started in self._started:
            if isinstance(started.process, AdoptedProcess):
                started.process.close()
                continue
            if started.lifeline is not None:
                started.lifeline.close()
            # The child isn't the brokers' parent and can't wait for them.
            started.process.returncode = 0
        self._started.clear()


def _say_goodbye(started: BrokerProcess, lifeline: Lifeline) -> None:
    """Let a lifeline end; without a word it would look like our death."""
    if lifeline.is_closed:
        return
    try:
        lifeline.write(GOODBYE)
    except BrokenPipeError:
        pass  # it is gone
    except OSError as error:
        logger.warning(
            "somebody has closed the lifeline of broker %d (%s), which is ended by SIGTERM instead",
            started.node.brokerid,
            error,
        )
        started.process.terminate()
    finally:
        lifeline.close()


def place_broker(node: NodeEnv) -> tuple[Sequence[str], str]:  # noqa: ARG001
    """Where a broker starts: a command prefix, and the ``tcp://HOST`` of its own, if it has one.

    Tests put brokers into network namespaces by it.
    """
    return (), ""


def kill_group(process: "subprocess.Popen[bytes] | AdoptedProcess") -> None:
    """SIGKILL to a process that leads a group and isn't reaped yet, and to that group."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("process %d had gone by itself", process.pid)


def working_directory() -> str:
    """The working directory; the root if it has been removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"


def import_path() -> list[str]:
    """Where executors find the client's modules: its sys.path, the empty entry spelled out."""
    cwd = working_directory()
    return list(dict.fromkeys(path or cwd for path in sys.path if isinstance(path, str)))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
