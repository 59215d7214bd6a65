"""Plain models of a group and of a pool, which predict what a user sees whenever no task can run.

Connections close at once in these models, and no two deadlines coincide. They predict only managers
without a policy; `model.py` predicts those with one.
"""

from math import inf

SLOW = 3.07
"""How long a slow attempt takes, in seconds."""


class Opening:
    """An attempt to open a connection: what follows from the outcome that a test has chosen."""

    def __init__(self, outcome, now):
        self.outcome = "ok" if outcome == "slow" else outcome
        self.due = {"ok": now, "Boom": now, "slow": now + SLOW, "hang": inf}[outcome]


class MemberModel:
    """A member of a group.

    Attributes:
        state: "closed" (or new), "queued" (for its turn), "opening", "open", "failed", or "either"
            closed or failed if it had not been opened when a strict group failed.
        before: The state before it was queued.
        failure: The name of the class of the exception, if any.
        callers: The calls that wait for its attempt.
    """

    def __init__(self):
        self.state = "closed"
        self.failure = None
        self.attempt = None
        self.deadline = inf
        self.callers = []
        self.in_turn = False
        self.before = "closed"


class GroupModel:
    """A group. Its events are named like the calls and the outcomes.

    Attributes:
        state: That of the group.
        members: A dictionary from keys to members.
        expected: A dictionary from calls to how they ended.
    """

    def __init__(self, keys, *, strict, timeout, limit):
        self.now = 0.0
        self.state = "new"
        self.failure = None
        self.strict = strict
        self.timeout = timeout
        self.limit = inf if limit is None else limit
        self.members = {key: MemberModel() for key in keys}
        self.outcomes = {}
        self.expected = {}
        self.starters = []
        self.turns = []  # the members and additions that wait for their turn, or have it
        self.adding = {}  # from a key to the call and the member

    def end(self, call, how):
        self.expected[call] = how

    # Calls.

    def start(self, call):
        if self.state == "open":
            self.end(call, "returned")
        elif self.state == "opening":
            self.starters.append(call)
        else:
            self.state, self.failure = "opening", None
            self.starters = [call]
            self.turns = list(self.members.values())
            for member in self.turns:
                member.before, member.state, member.in_turn = member.state, "queued", False
            self.give_turns()
            self.open_if_all_had_their_turn()

    def stop(self, call):
        self.close("ConnectionStoppedError")
        if self.state in {"opening", "open"}:
            self.state = "closed"
        self.end(call, "returned")

    def close(self, how):
        """Closes the group, which ends all calls."""
        if self.state not in {"opening", "open"}:
            return
        self.end_starters(how)
        for call, member in self.adding.values():
            self.end(call, "ConnectionStoppedError")
            member.callers.clear()
        self.adding.clear()
        self.turns.clear()
        for member in self.members.values():
            self.close_member(member)

    def end_starters(self, how):
        for call in self.starters:
            self.end(call, how)
        self.starters.clear()

    def close_member(self, member):
        for call in member.callers:
            self.end(call, "ConnectionStoppedError")
        member.callers.clear()
        if member.state == "queued":
            member.state = member.before
        elif member.state in {"opening", "open"}:
            member.state, member.attempt = "closed", None

    def add(self, call, key):
        if self.state != "open":
            self.end(call, "NotConnectedError")
        elif key in self.members or key in self.adding:
            self.end(call, "ValueError")
        else:
            member = MemberModel()
            member.state = "queued"
            member.callers = [call]
            self.adding[key] = call, member
            self.turns.append(member)
            self.give_turns()

    def remove(self, call, key):
        member = self.members.pop(key, None)
        if member is None:
            self.end(call, "KeyError")
            return
        self.close_member(member)
        self.leave_turn(member)
        self.end(call, "returned")

    def cancel(self, call):
        self.end(call, "cancelled")
        if call in self.starters:
            self.starters.remove(call)
            if not self.starters and self.state == "opening":
                self.close("never")
                self.state = "closed"
            return
        for key, (adder, member) in list(self.adding.items()):
            if adder is call:
                del self.adding[key]
                self.leave_turn(member)
        for member in self.members.values():
            if call in member.callers:
                member.callers.remove(call)
                if not member.callers:
                    member.state, member.attempt = "closed", None

    # Members.

    def start_member(self, call, key):
        member = self.members[key]
        if member.state == "open":
            self.end(call, "returned")
        elif member.state == "opening":
            member.callers.append(call)
        else:
            member.callers = [call]
            self.begin(key, member, inf)

    def stop_member(self, call, key):
        member = self.members[key]
        if member.state != "queued":
            self.close_member(member)
        self.leave_turn(member, begun=True)
        self.end(call, "returned")

    def lose(self, key):
        member = self.members[key]
        if member.state == "open":
            member.state, member.failure = "failed", "ConnectionLostError"
            if self.strict and self.state == "opening":
                self.close_strictly("ConnectionLostError")
            self.end_for_good()

    def end_for_good(self):
        """Records that a member failed and will not open again, which ends a strict group."""
        if self.strict and self.state == "open":
            self.close("never")
            self.state, self.failure = "failed", "ConnectionLostError"

    def give_turns(self):
        for member in list(self.turns):
            if sum(each.in_turn for each in self.turns) >= self.limit:
                return
            if member not in self.turns or member.in_turn:
                continue
            member.in_turn = True
            self.begin(self.key_of(member), member, self.now + self.timeout)

    def key_of(self, member):
        return next(
            key
            for key, each in [*self.members.items(), *((k, m) for k, (_, m) in self.adding.items())]
            if each is member
        )

    def begin(self, key, member, deadline):
        member.state, member.failure = "opening", None
        member.attempt, member.deadline = Opening(self.outcomes.get(key, "ok"), self.now), deadline
        self.settle(key, member)

    def settle(self, key, member):
        """Ends an attempt that is due."""
        if member.state == "opening" and member.attempt.due <= self.now:
            self.settled(key, member, member.attempt.outcome)

    def settled(self, key, member, outcome):
        member.attempt = None
        if outcome == "ok":
            member.state, how = "open", "returned"
        else:
            member.state, member.failure, how = "failed", outcome, outcome
        for call in member.callers:
            self.end(call, how)
        member.callers.clear()
        if key in self.adding and self.adding[key][1] is member:
            del self.adding[key]
            if outcome == "ok":
                self.members[key] = member
        elif outcome != "ok" and self.strict and self.state == "opening":
            self.close_strictly(outcome)
            return
        elif outcome != "ok":
            self.end_for_good()
        self.leave_turn(member)

    def close_strictly(self, outcome):
        unsettled = [member for member in self.members.values() if member.state in {"queued", "opening"}]
        self.close(outcome)
        for member in unsettled:
            member.state = "either"  # it may have failed in the same tick
        self.state, self.failure = "failed", outcome

    def leave_turn(self, member, *, begun=False):
        if member in self.turns and (member.in_turn or not begun):
            self.turns.remove(member)
            self.give_turns()
        self.open_if_all_had_their_turn()

    def open_if_all_had_their_turn(self):
        if self.state == "opening" and not self.turns:
            self.state = "open"
            self.end_starters("returned")

    def pass_time(self, now):
        while True:
            times = []
            everything = [*self.members.items(), *((k, m) for k, (_, m) in self.adding.items())]
            for key, member in everything:
                if member.state == "opening":
                    times.append((min(member.attempt.due, member.deadline), key, member))
            first = min(times, key=lambda each: each[0], default=None)
            if first is None or first[0] > now:
                break
            self.now, key, member = first
            if member.attempt.due <= self.now:
                self.settle(key, member)
            else:
                self.settled(key, member, "StartTimeoutError")
        self.now = now


class Entry:
    """A connection of a pool.

    Attributes:
        number: Which call of `open()` created it, counted from 1.
        waiting: The calls that wait for it.
        users: The calls whose blocks use it.
        state: "queued", "opening", "open" or "gone".
    """

    def __init__(self, key):
        self.key = key
        self.number = None
        self.waiting = []
        self.users = []
        self.state = "queued"
        self.attempt = None
        self.is_discarded = False
        self.idle_until = None


class PoolModel:
    """A pool.

    Attributes:
        expected: A dictionary from calls to how they ended, or the number of the connection in use.
    """

    def __init__(self, *, max_open, idle_timeout):
        self.now = 0.0
        self.max_open = inf if max_open is None else max_open
        self.idle_timeout = inf if idle_timeout is None else idle_timeout
        self.outcomes = {}
        self.expected = {}
        self.deadlines = {}
        self.is_open = False
        self.number = self.opened = self.failed = 0
        self.clear()

    def clear(self):
        self.entries = {}  # those that new users join
        self.queue = []
        self.with_slot = []
        self.idle = []

    def end(self, call, how):
        self.expected[call] = how
        self.deadlines.pop(call, None)

    def stats(self):
        is_open = sum(entry.state == "open" for entry in self.with_slot)
        waiting = sum(len(entry.waiting) for entry in [*self.with_slot, *self.queue])
        return is_open, len(self.idle), waiting, self.opened, self.failed

    # Calls.

    def start(self):
        self.is_open = True

    def stop(self):
        self.is_open = False
        entries = [*self.with_slot, *self.queue]
        self.clear()
        for entry in entries:
            entry.state = "gone"
            self.raise_in(entry.waiting, "ConnectionStoppedError")

    def acquire(self, call, key, timeout):
        if not self.is_open:
            self.end(call, "NotConnectedError")
            return
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry(key)
            self.queue.append(entry)
        if entry in self.idle:
            self.idle.remove(entry)
        entry.waiting.append(call)
        if timeout is not None:
            self.deadlines[call] = self.now + timeout
        self.let_in(entry)
        self.give_slots()

    def leave(self, call, how):
        """A block exits, or a call ends."""
        entry = next(
            (e for e in [*self.with_slot, *self.queue] if call in e.waiting or call in e.users), None
        )
        self.end(call, how)
        if entry is None:
            return
        (entry.waiting if call in entry.waiting else entry.users).remove(call)
        if entry.waiting or entry.users:
            return
        if entry.state == "queued":
            self.queue.remove(entry)
            del self.entries[entry.key]
        elif entry.state == "opening":
            self.failed += how != "cancelled"
            self.close(entry)
        elif entry.is_discarded:
            self.close(entry)
        else:
            entry.idle_until = self.now + self.idle_timeout
            self.idle.append(entry)
            self.expire()
            self.give_slots()

    def discard(self, key):
        entry = self.entries.get(key)
        if entry is None or entry.state == "queued":
            return
        if entry in self.idle:
            self.close(entry)
        else:
            entry.is_discarded = True
            del self.entries[key]

    def lose(self, number):
        entry = next((each for each in self.with_slot if each.number == number), None)
        if entry is not None and entry.state == "open":
            self.close(entry)

    # Slots.

    def give_slots(self):
        while self.queue:
            if len(self.with_slot) < self.max_open:
                entry = self.queue.pop(0)
                self.with_slot.append(entry)
                self.number += 1
                entry.number = self.number
                entry.state = "opening"
                entry.attempt = Opening(self.outcomes.get(entry.key, "ok"), self.now)
                self.settle(entry)
            elif self.idle:
                self.close(self.idle[0])
            else:
                return

    def settle(self, entry):
        if entry.attempt.due > self.now:
            return
        if entry.attempt.outcome == "ok":
            entry.state = "open"
            self.opened += 1
            self.let_in(entry)
        else:
            self.failed += 1
            self.raise_in(entry.waiting, entry.attempt.outcome)
            self.close(entry)

    def let_in(self, entry):
        if entry.state == "open":
            for call in entry.waiting:
                self.end(call, entry.number)
            entry.users += entry.waiting
            entry.waiting = []

    def raise_in(self, calls, how):
        for call in calls:
            self.end(call, how)
        calls.clear()

    def close(self, entry):
        entry.state = "gone"
        self.with_slot.remove(entry)
        if entry in self.idle:
            self.idle.remove(entry)
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
        self.give_slots()

    def expire(self):
        while self.idle and self.idle[0].idle_until <= self.now:
            self.close(self.idle[0])

    def pass_time(self, now):
        while True:
            dues = [entry.attempt.due for entry in self.with_slot if entry.state == "opening"]
            expiries = [entry.idle_until for entry in self.idle]
            first = min([*dues, *expiries, *self.deadlines.values()], default=inf)
            if first > now:
                break
            self.now = max(self.now, first)
            for entry in list(self.with_slot):
                if entry.state == "opening":
                    self.settle(entry)
            for call, deadline in list(self.deadlines.items()):
                if deadline <= self.now:
                    self.leave(call, "StartTimeoutError")
            self.expire()
        self.now = now
