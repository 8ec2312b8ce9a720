"""Which requests meet which fault."""

from __future__ import annotations

import itertools
import random
import re

MATCH = {"method", "path", "query", "object", "headers", "min_size", "max_size"}
ACTION = {"status", "headers", "body", "reset", "stall", "after", "truncate", "flip", "swallow", "delay", "hold", "patch"}
RULE = {"match", "action", "nth", "times", "probability", "seed"}


class Rule:
    """One fault and the requests that meet it; see the head of fault_proxy.py for the form."""

    _ids = itertools.count(1)

    def __init__(self, given):
        match, action = given.get("match", {}), given["action"]
        for known, names in ((RULE, given), (MATCH, match), (ACTION, action)):
            unknown = set(names) - known
            if unknown:
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        self.id = next(self._ids)
        self.given, self.action = given, action
        methods = match.get("method")
        self._methods = {methods} if isinstance(methods, str) else set(methods or ())
        self._texts = [(name, re.compile(match[name])) for name in ("path", "query", "object") if name in match]
        self._headers = [(name.lower(), re.compile(value)) for name, value in match.get("headers", {}).items()]
        self._sizes = match.get("min_size", 0), match.get("max_size", float("inf"))
        self._skip = given.get("nth", 1) - 1
        self._left = given.get("times", float("inf"))
        self._probability = given.get("probability", 1)
        self._random = random.Random(given.get("seed", self.id))
        self.matched = self.applied = 0

    def applies(self, request, name):
        """Whether this request meets the fault; counts it where it does."""
        if self._left <= 0 or (self._methods and request.method not in self._methods):
            return False
        for what, pattern in self._texts:
            if not pattern.search(name if what == "object" else getattr(request, what)):
                return False
        if any(not pattern.search(request.get(header)) for header, pattern in self._headers):
            return False
        if not self._sizes[0] <= (request.size or 0) <= self._sizes[1]:
            return False
        self.matched += 1
        if self.matched <= self._skip or self._random.random() >= self._probability:
            return False
        self._left -= 1
        self.applied += 1
        return True

    def report(self):
        return {"id": self.id, **self.given, "matched": self.matched, "applied": self.applied}


class Rules:
    """All faults that are set, in the order they came; the first that applies is the request's."""

    def __init__(self):
        self._rules = []

    def add(self, given):
        rules = [Rule(one) for one in (given if isinstance(given, list) else [given])]
        self._rules += rules
        return [rule.id for rule in rules]

    def remove(self, number=None):
        self._rules = [rule for rule in self._rules if number is not None and rule.id != number]

    def find(self, request, name):
        for rule in self._rules:
            if rule.applies(request, name):
                return rule.action
        return None

    def stands(self, action):
        """Whether the rule with this action has not been removed."""
        return any(rule.action is action for rule in self._rules)

    def report(self):
        return [rule.report() for rule in self._rules]

    def __bool__(self):
        return bool(self._rules)
