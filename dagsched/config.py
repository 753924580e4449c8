"""Every limit and default, in one frozen object: validated once, then passed down."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of an environment. Units stand last in each name.

    Raises:
        ValueError: a limit is not positive, or a directory's name is empty.
        TypeError: a directory's name is no str, or a switch no bool.
    """

    inline_bytes_max: int = 16_384
    """Objects up to this size travel inside messages; larger ones through shared memory."""

    source_bytes_min: int = 65_536
    """Constants from this size on are stored once a node instead of travelling with their task."""

    segment_bytes: int = 64 << 20
    """An arena grows by segments of this size (or of one object's size, where that is larger).

    Of segments that have become empty as many bytes stay, for their pages are warm.
    """

    memory_limit_bytes: int | None = None
    """Most bytes of shared memory that one process's arena may take; None: what the system has."""

    store_bytes_max: int | None = None
    """Most bytes of shared memory that the objects of one node take, executors and broker together;
    what has no room lies in files. None: half of the machine's memory, or four fifths of /dev/shm
    where that is less. Near it the objects that weren't used for longest are moved to files."""

    withhold_roots: bool = True
    """Whether tasks that only make large results wait, while a store is above its mark, for those
    that use some up. Without, a run may be faster, and what it holds is moved to files sooner."""

    spill_directory: str | None = None
    """Where objects go that shared memory has no room for; None: the run directory."""

    bundle_s: float = 0.005
    """A bundle is cut to about this much work, so that no task pays for messages."""

    unknown_task_s: float = 0.001
    """How long a call of a function not yet measured is taken to last."""

    overhead_s: float = 0.000_3
    """What handing a bundle to an executor and back costs; less work than that isn't split off."""

    gang_s: float = 0.08
    """So long may executors run levels that wait for each other hand in hand, at most."""

    handover_s: float = 0.000_03
    """What a level of these costs beside its tasks, where values change executors."""

    hand_in_hand: bool = True
    """Whether they do at all; without, such values go from executor to executor by the broker."""

    queue_slots_max: int = 2
    """Bundles that an executor holds at once (one runs), if they are short."""

    subtrees_a_node: int = 4
    """How many subtrees a node shall get of one run, so that slow nodes can do fewer."""

    placed_subtrees_max: int = 3
    """Subtrees that a broker holds unfinished at once, for one run."""

    crash_limit: int = 3
    """Executors that one task may take down before it fails for good."""

    cancel_grace_s: float = 0.2
    """After a cancel a running task has this long to end before its executor is killed."""

    failure_grace_s: float = 5.0
    """After another task's failure a running task has this long to end."""

    start_timeout_s: float = 10.0
    """How long the first run waits for nodes that have not joined yet."""

    no_nodes_grace_s: float = 30.0
    """How long a run waits without any node before it fails."""

    close_timeout_s: float = 5.0
    """How long processes have to end by themselves when an environment is closed."""

    master_grace_s: float = 30.0
    """After the death of its master a broker that has runs waits so long, at least, to be resumed;
    longer if its oldest run has lasted longer."""

    master_grace_max_s: float = 3600.0
    """But never longer than this."""

    stall_warning_s: float = 30.0
    """A run in which nothing moves and no task runs for this long is warned of, with the cause."""

    story_events_max: int = 10_000
    """What is kept of a run's placements, losses and retries, so that each task's story is told."""

    trace: bool = True
    """Whether it is recorded when and where each task ran, and each bundle, transfer and spill.
    Without, `Run.trace()` knows of none, and nobody learns from it how long single calls took."""

    trace_rows_max: int = 1_000_000
    """Most rows of bundles, of transfers and of spills that a run's trace has, each; beyond, every
    second is kept, then every fourth, and so on."""

    lease_s: float = 2.5
    """A node not heard of for this long is lost: more than a broker's longest turn, which is the
    allocation of a very large object's memory (a second for each GiB on a slow machine)."""

    heartbeat_s: float = 0.5
    """A node is asked so often for a sign of life, whatever else it says."""

    link_window_batches: int = 1_000
    """Batches under way to one peer at once; a receiver keeps as many that come early."""

    link_batches_max: int = 100_000
    """Batches that wait for one peer at most, those under way included; more, and it is lost."""

    ack_batches: int = 16
    ack_delay_s: float = 0.05
    """What has come is acknowledged after so many batches, or so long, unless with an answer."""

    resend_s: float = 0.5
    resend_max_s: float = 10.0
    """What isn't acknowledged within this is sent again; twice as long each time, up to that."""

    nonsense_max: int = 10
    """Batches of one peer that can't be read, or make no sense, before it is closed."""

    orphans_timeout_s: float = 1.5
    """How long a resumed run waits for the brokers that it had, before it goes on without."""

    recovery_limit: int = 10
    """How often the value of one task may be lost and computed again before the run fails."""

    transfer_chunk_bytes: int = 4 << 20
    transfer_window_bytes: int = 16 << 20
    """Bytes of one object under way between two brokers before the receiver must confirm."""

    log_bytes_max: int = 1 << 20
    """Size of the file that keeps what an executor printed; the oldest part is dropped."""

    log_tail_bytes: int = 65_536

    message_bytes_max: int = 256 << 20
    """A header larger than this is refused before it is decoded."""

    journal_batch_s: float = 0.05
    journal_queue_max: int = 100_000
    journal_bytes_max: int = 128 << 20
    """Records and encoded bytes that may wait for a store that is away; more: it is torn."""

    journal_check_s: float = 1.0
    """How often the journals of runs that go on are looked after: they are written anew if lost."""

    results_max: int = 1000
    results_bytes_max: int = 64 << 20
    result_expiry_s: int = 3600
    """Finished runs whose results stay in the store: so many, so large together, so long."""

    store_timeout_s: float = 5.0
    key_expiry_s: int = 7 * 24 * 3600

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name == "spill_directory":
                if value is not None and not isinstance(value, str):
                    raise TypeError(f"{name} must be a str, not {type(value).__name__}")
                if value == "":
                    raise ValueError(f"{name} must not be empty")
                continue
            if name in ("withhold_roots", "hand_in_hand", "trace"):
                if not isinstance(value, bool):
                    raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
                continue
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, not {value!r}")
