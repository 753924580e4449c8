"""What simulated processes have in common: a clock of their own, and being stopped or killed."""

from collections.abc import Callable

from dagsched.testing.clock import SimClock

Action = Callable[[], None]


class SimProcess:
    """A process whose shell takes turns: push what came, take the actions once, do them.

    Args:
        clock: of the simulation.
        clock_offset_s: how much its monotonic clock is ahead; no two machines agree.
    """

    def __init__(self, clock: SimClock, *, clock_offset_s: float = 0.0) -> None:
        self.clock = clock
        self.is_alive = True
        self.is_paused = False
        self._clock_offset_s = clock_offset_s
        self._held: list[Action] = []  # what happened to it while it was stopped
        self._is_catching_up = False
        self._wake_s: float | None = None  # by the clock of the simulation

    @property
    def now(self) -> float:
        """By its own monotonic clock."""
        return self.clock.now + self._clock_offset_s

    # --- what happens to it -----------------------------------------------------------------------

    def take(self, action: Action) -> None:
        """Do it now; when it goes on, if it is stopped; never, if it is dead."""
        if not self.is_alive:
            return
        if self.is_paused:
            self._held.append(action)
        else:
            action()

    def after(self, delay_s: float, action: Action) -> None:
        """The same, when this time has gone by."""
        self.clock.after(delay_s, lambda: self.take(action))

    def pause(self) -> None:
        """Stop it (SIGSTOP): what comes waits in its sockets."""
        self.is_paused = True

    def proceed(self) -> None:
        """Let it go on (SIGCONT): it finds all that has come, in one turn."""
        if not self.is_paused:
            return
        self.is_paused = False
        self._is_catching_up = True
        held, self._held = self._held, []
        for action in held:
            self.take(action)
        self._is_catching_up = False
        if self.is_alive:
            self.turn()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.is_alive = False
        self._held.clear()

    # --- turns ------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Take the actions that follow from what came, and do them; then wait for a timer."""
        if self._is_catching_up or not self.is_alive:
            return
        self._act()
        timer_s = self._next_timer()
        if timer_s is None:
            return
        due_s = max(timer_s - self._clock_offset_s, self.clock.now + 1e-6)
        if self._wake_s is None or due_s < self._wake_s:
            self._wake_s = due_s
            self.clock.at(due_s, lambda: self.take(self._wake))

    def _wake(self) -> None:
        if self._wake_s is not None and self.clock.now >= self._wake_s:
            self._wake_s = None
            self._handle_timer()
            self.turn()

    # --- for subclasses ---------------------------------------------------------------------------

    def _act(self) -> None:
        raise NotImplementedError

    def _next_timer(self) -> float | None:
        raise NotImplementedError

    def _handle_timer(self) -> None:
        raise NotImplementedError
