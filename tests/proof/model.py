"""A plain model of the manager's contract, without tasks.

It predicts the manager's state at each moment when no task can run, and orders the events in between.
"""

from math import inf


class Call:
    """A call to a method of the manager.

    Attributes:
        expected: How the call should end, in one word; `None` while it should be pending.
    """

    def __init__(self, kind, deadline=inf):
        self.kind = kind
        self.deadline = deadline
        self.is_stopped = False
        self.expected = None


class Model:
    def __init__(self):
        self.state = "new"
        self.failure = None
        self.is_lost = False
        self.force_at = inf
        self.starters = []
        self.queued = []
        self.stoppers = []
        self.waiters = []
        self.next_open = "ok"
        self.next_close = "ok"

    # Calls.

    def start(self, call):
        if self.state == "open":
            call.expected = "returned"
        elif self.state == "opening":
            self.starters.append(call)
        elif self.state == "closing":
            self.queued.append(call)
        else:
            self.begin([call])

    def stop(self, call, force_at, *, at_once):
        for queued in self.queued:
            queued.is_stopped = True
        self.stoppers.append(call)
        if self.state == "opening":
            self.end(None, "ConnectionStoppedError")
        elif self.state == "open" and not at_once:
            self.close(force_at)
        elif self.state == "open":
            self.force()
        elif self.state == "closing":
            self.force_at = min(self.force_at, force_at)
            if at_once:
                self.force()
        else:
            self.stoppers.remove(call)
            call.expected = "returned"

    def wait_closed(self, call):
        if self.state in {"opening", "open", "closing"}:
            self.waiters.append(call)
        else:
            call.expected = self.failure or "returned"

    def cancel(self, call):
        call.expected = "cancelled"
        for calls in (self.queued, self.waiters):
            if call in calls:
                calls.remove(call)
        if call in self.stoppers:
            self.stoppers.remove(call)
            self.force()
        if call in self.starters:
            self.leave(call)

    # Events.

    def lose(self, force_at):
        if self.state == "opening":
            self.is_lost = True
            self.end(None, "ConnectionLostError")
        elif self.state == "open":
            self.is_lost = True
            self.close(force_at)

    def crash(self):
        if self.state == "opening":
            self.end("Boom", "Boom")
        elif self.state == "open":
            self.is_lost = True
            self.force()
        elif self.state == "closing":
            self.end("Boom")

    def cancel_owner(self):
        if self.state == "opening":
            self.is_lost = True
            self.end(None, "ConnectionLostError")
        elif self.state == "open":
            self.is_lost = True
            self.force()
        elif self.state == "closing":
            self.force()

    def pass_time(self, now):
        while True:
            calls = [*self.starters, *self.queued]
            first = min(calls, key=lambda call: call.deadline, default=None)
            if first is not None and first.deadline <= min(now, self.force_at):
                first.expected = "StartTimeoutError"
                if first in self.queued:
                    self.queued.remove(first)
                else:
                    self.leave(first, "StartTimeoutError")
            elif self.state == "closing" and self.force_at <= now:
                self.force()
            else:
                return

    # Transitions.

    def begin(self, calls):
        self.is_lost = False
        self.force_at = inf
        self.failure = None
        opening, self.next_open = self.next_open, "ok"
        self.starters = calls
        self.state = "opening"
        if opening == "ok":
            self.state = "open"
            for call in calls:
                call.expected = "returned"
            self.starters = []
        elif opening == "fail":
            self.end("Boom", "Boom")

    def leave(self, call, failure=None):
        self.starters.remove(call)
        if not self.starters:
            self.end(failure)

    def close(self, force_at):
        closing, self.next_close = self.next_close, "ok"
        self.state = "closing"
        self.force_at = force_at
        if closing == "ok":
            self.end(None)
        elif closing == "fail":
            self.end("Boom")

    def force(self):
        if self.state == "open":
            self.next_close = "ok"  # the stage is cancelled before its first step
        self.end(None)

    def end(self, failure, starters=None):
        self.failure = "ConnectionLostError" if self.is_lost else failure
        self.state = "failed" if self.failure else "closed"
        for call in self.starters:
            call.expected = starters
        for call in self.stoppers:
            call.expected = "returned"
        for call in self.waiters:
            call.expected = self.failure or "returned"
        self.starters, self.stoppers, self.waiters = [], [], []
        queued, self.queued = self.queued, []
        for call in queued:
            if call.is_stopped:
                call.expected = "ConnectionStoppedError"
        remaining = [call for call in queued if not call.is_stopped]
        if remaining:
            self.begin(remaining)
