"""A plain model of the manager's contract, without tasks.

It predicts the manager's state at each moment when no task can run, and orders the events in between.
"""

from math import inf

STOP_TIMEOUT = 30.0


class Call:
    """A call to a method of the manager, or the use of an `async with` block.

    Attributes:
        expected: How the call should end, in one word; `None` while it should be pending.
        is_stopped: Whether `stop()` was called while the call waited for the end of a close.
        is_inside: Whether the block has a connection, and has not begun to exit.
        result: How the call ends even if its last step succeeds.
    """

    def __init__(self, kind, deadline=inf):
        self.kind = kind
        self.deadline = deadline
        self.is_stopped = False
        self.is_inside = False
        self.result = None
        self.expected = None

    def end(self, result):
        self.expected = self.result or result


class Model:
    """The state of a manager and its calls.

    Args:
        policy: The `ReconnectPolicy`, if any. Only its fields are used.
        start_timeout: See `ConnectionManager`.
        is_really_kept: Returns whether the run outlives its blocks. It is asked if several calls waited
            for the end of a close, because it is not specified which of them begins the next run.
    """

    def __init__(self, policy=None, start_timeout=None, is_really_kept=None):
        self.policy = policy
        self.start_timeout = inf if start_timeout is None else start_timeout
        self.is_really_kept = is_really_kept
        self.now = 0.0
        self.next_open = []
        self.next_close = []
        self.stoppers = []
        self.waiters = []
        self.openers = []
        # What follows describes the present run, the last one if it is over.
        self.state = "new"
        self.failure = None
        self.is_lost = False
        self.cause = None
        self.was_open = False
        self.opened_at = self.lost_at = 0.0
        self.force_at = inf
        self.is_delayed = False
        self.due = self.attempt_ends = inf
        # The series of runs.
        self.continues = False
        self.received = False
        self.failures = 0
        self.last_failure = None
        self.starters = []
        self.queued = []
        self.blocks = []
        self.beginners = []
        self.kept = False
        self.has_exit = False

        # The blocks that did not exit before their series ended, with their calls as in `blocks`.
        self.over = []

    @property
    def is_alive(self):
        return self.state in {"opening", "open", "closing"}

    @property
    def reconnecting(self):
        """The number of failures, the time of the next attempt, and the last failure."""
        if self.state != "opening" or self.last_failure is None:
            return None
        return self.failures, self.due, self.last_failure

    # Calls.

    def start(self, call):
        if self.state == "open":
            self.receive(call)
        elif self.state == "opening":
            self.starters.append(call)
        elif self.state == "closing":
            self.queued.append(call)
        else:
            self.begin([call])

    def wait_open(self, call):
        if self.state == "open":
            call.end("returned")
        elif self.state == "opening" or (self.state == "closing" and self.will_follow()):
            self.openers.append(call)
        else:
            call.end(self.connection_error())

    def stop(self, call, timeout):
        for queued in self.queued:
            queued.is_stopped = True
        self.close_for(call, self.now + timeout, at_once=timeout == 0)

    def exit(self, call):
        """A block exits, in the task that entered it or in another one."""
        call.is_inside = False
        if self.belongs_to_series(call):
            self.has_exit = True
            if self.is_left():
                self.close_for(call, self.now + STOP_TIMEOUT, at_once=False)
                return
        call.end("returned")

    def belongs_to_series(self, call):
        """Matches an exit with an entry. Entries of tasks that have ended are `None`."""
        entries = self.blocks if call in self.blocks or not self.over else self.over
        owners = [owner for owner in (call, None) if owner in entries]
        if entries is self.blocks and call not in entries:
            owners = entries[:1]  # the oldest one
        if entries:
            entries.remove(owners[0] if owners else entries[0])
            return entries is self.blocks
        return False

    def wait_closed(self, call):
        if self.is_alive:
            self.waiters.append(call)
        else:
            call.end(self.failure or "returned")

    def cancel(self, call, *, natively):
        call.result = "cancelled"
        if call.is_inside:
            self.exit(call)
            if natively:
                return  # the exit itself is not cancelled
        call.expected = "cancelled"
        for calls in (self.waiters, self.openers):
            if call in calls:
                calls.remove(call)
        if call in self.stoppers:
            self.stoppers.remove(call)
            self.force()
        if call in self.queued:
            self.queued.remove(call)
            if call.kind.startswith("enter") and self.is_left():
                self.continues = False
        if call in self.starters:
            self.leave(call)
            if call.kind.startswith("enter") and self.is_alive and self.is_left():
                self.force()

    # Events.

    def lose(self, cause):
        if self.state == "opening" and not self.is_delayed:
            self.is_lost, self.cause = True, cause
            self.end(None, "ConnectionLostError")
        elif self.state == "open":
            self.is_lost, self.cause = True, cause
            self.lost_at = self.now
            self.close(self.now + STOP_TIMEOUT)
        elif self.state == "closing" and self.is_lost and self.cause is None:
            self.cause = cause

    def crash(self):
        if self.state == "opening" and not self.is_delayed:
            self.end("Boom", "Boom")
        elif self.state == "open":
            self.is_lost, self.lost_at = True, self.now
            self.next_close[:1] = []  # the stage is cancelled before its first step
            self.end(None)
        elif self.state == "closing":
            self.end("Boom")

    def cancel_owner(self):
        self.continues = False
        if self.state in {"opening", "open"}:
            self.is_lost = True
        if self.state == "opening":
            self.end(None, "ConnectionLostError")
        elif self.is_alive:
            self.force()

    def pass_time(self, now):
        """Handles all events until `now`, in their order."""
        while True:
            self.release_openers()
            events = [
                (call.deadline, self.time_out, call)
                for call in (*self.starters, *self.queued, *self.openers)
            ]
            if self.state == "closing":
                events.append((self.force_at, self.end, None))
            if self.state == "opening" and self.is_delayed:
                events.append((self.due, self.attempt))
            elif self.state == "opening":
                events.append((self.attempt_ends, self.end, "StartTimeoutError", "StartTimeoutError"))
            first = min(events, key=lambda event: event[0], default=(inf,))
            if first[0] > now:
                break
            self.now = first[0]
            first[1](*first[2:])
        self.now = now

    def time_out(self, call):
        call.end("StartTimeoutError")
        if call in self.starters:
            self.leave(call, "StartTimeoutError")
        elif call in self.queued:
            self.queued.remove(call)
        else:
            self.openers.remove(call)

    def release_openers(self):
        """Ends the calls of `wait_open()` if the connection closes and no other run will follow."""
        if self.state == "closing" and not self.will_follow():
            openers, self.openers = self.openers, []
            for call in openers:
                call.end(self.connection_error())

    # Questions.

    def will_follow(self):
        """Returns whether another run follows the close."""
        return self.continues or any(not call.is_stopped for call in self.queued)

    def connection_error(self):
        is_loss = self.is_lost and (self.state == "closing" or self.failure is not None)
        return "ConnectionLostError" if is_loss else "NotConnectedError"

    def is_needed(self):
        """Returns whether a block uses the connection, or waits to enter."""
        return bool(self.blocks) or any(
            call.kind.startswith("enter") for call in (*self.starters, *self.queued)
        )

    def is_left(self):
        """Returns whether blocks began the series, and all of them have exited."""
        kept = self.is_really_kept() if self.kept is None else self.kept
        return not kept and self.has_exit and not self.is_needed()

    # Transitions.

    def begin(self, calls):
        """Begins a series."""
        self.continues = self.policy is not None
        self.received = self.has_exit = False
        self.failures = 0
        self.last_failure = None
        self.starters = calls
        kinds = {call.kind for call in calls}
        self.beginners = list(calls)
        self.kept = kinds == {"start"} if len(kinds) == 1 else None
        self.attempt()

    def attempt(self):
        self.state = "opening"
        self.is_lost = self.was_open = self.is_delayed = False
        self.force_at = inf
        self.failure = self.cause = None
        self.attempt_ends = self.now + self.start_timeout
        opening = self.next_open.pop(0) if self.next_open else "ok"
        if opening == "ok":
            self.state = "open"
            self.was_open = self.received = True
            self.opened_at = self.now
            self.last_failure = None
            starters, self.starters = self.starters, []
            for call in starters:
                self.receive(call)
            openers, self.openers = self.openers, []
            for call in openers:
                call.end("returned")
        elif opening != "hang":
            self.end(opening, opening)

    def receive(self, call):
        if call.kind == "enter":
            call.is_inside = True
            self.blocks.append(call)
        else:
            self.blocks += [None] if call.kind == "enter only" else []
            call.end("returned")

    def leave(self, call, failure=None):
        """A call goes away without a connection."""
        self.starters.remove(call)
        if not self.starters and not self.received:
            self.continues = False
            self.end(failure)
        elif call.kind == "start" and call in self.beginners and self.is_needed():
            self.kept = False if self.beginners == [call] else None

    def close_for(self, call, force_at, *, at_once):
        self.stoppers.append(call)
        self.continues = False
        if self.state == "opening":
            self.end(None, "ConnectionStoppedError")
        elif self.state == "open" and not at_once:
            self.close(force_at)
        elif self.is_alive:
            self.force_at = min(self.force_at, force_at)
            if at_once:
                self.force()
        else:
            self.stoppers.remove(call)
            call.end("returned")

    def close(self, force_at):
        closing = self.next_close.pop(0) if self.next_close else "ok"
        self.state = "closing"
        self.force_at = force_at
        if closing == "ok":
            self.end(None)
        elif closing != "hang":
            self.end(closing)

    def force(self):
        self.continues = False
        if self.state == "open":
            self.next_close[:1] = []  # the stage is cancelled before its first step
        self.end(None, "ConnectionStoppedError")

    def end(self, error, starters=None):
        """The owner task ends, and `error` was raised."""
        self.failure = "ConnectionLostError" if self.is_lost else error
        self.cause = self.cause or error
        if self.failure and self.continues and self.is_followed():
            return
        self.state = "failed" if self.failure else "closed"
        self.continues = False
        self.over += self.blocks
        self.blocks = []
        for call in self.starters:
            call.end(starters)
        for call in self.stoppers:
            call.end("returned")
        for call in self.waiters:
            call.end(self.failure or "returned")
        self.starters, self.stoppers, self.waiters = [], [], []
        queued, self.queued = self.queued, []
        for call in queued:
            if call.is_stopped:
                call.end("ConnectionStoppedError")
        remaining = [call for call in queued if not call.is_stopped]
        if remaining:
            self.begin(remaining)
            return
        for call in self.openers:
            call.end(self.connection_error())
        self.openers = []

    def is_followed(self):
        """Begins the delay before another run, if the policy says so."""
        if self.was_open and self.lost_at - self.opened_at >= self.policy.stable_after:
            self.failures = 0
        self.failures += 1
        retries = self.policy.max_retries
        if (retries is not None and self.failures > retries) or self.cause == "TypeError":
            return False
        delay = self.policy.initial_delay * self.policy.multiplier ** (self.failures - 1)
        self.due = self.now + min(delay, self.policy.max_delay)
        self.last_failure = self.failure
        self.failure = self.cause = None
        self.is_lost = self.was_open = False
        self.force_at = inf
        self.state, self.is_delayed = "opening", True
        self.starters += self.queued
        self.queued = []
        return True
