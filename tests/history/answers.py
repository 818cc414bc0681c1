"""Is an answer one of those that were sound, and did it do what it says?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tests.history.judge import Ground, Judge, Part, typed
from tests.history.oracle import Change, Conflict, Ruling, same
from tests.history.records import Attempt

OUTCOMES = {"apply": "applied", "stale": "held", "unchanged": "unchanged"}


class Answer(Ground):
    """One answered attempt."""

    def __init__(self, judge: Judge, attempt: Attempt) -> None:
        super().__init__(judge, attempt)
        assert attempt.answer is not None
        self.answer = attempt.answer
        said = self.answer.get("error", self.answer).get("notifications") or []
        self.notifications: dict[tuple[str, int], Part] = {
            (place, n[place]): n for n in said for place in ("index", "read") if place in n
        }

    def wrong(self, kind: str, what: str) -> None:
        self.judge.report.add(
            kind, self.attempt.name, f"{what}\n  asked {self.attempt.request}\n  got {self.answer}"
        )

    def check(self) -> None:
        code = self.attempt.code
        foreign = any(token.started != self.after.started for token in self.attempt.used)
        if foreign and code == "token_foreign":
            return
        if foreign and code != "invalid_request":
            self.wrong("foreign_token", "a token from before the crash was taken")
        if code is None:
            self.confirmed()
        elif code == "stale_context":
            self.stale()
        elif code in ("not_found", "already_exists"):
            self.existence(code)
        elif code == "precondition_failed":
            self.condition()
        elif code != "invalid_request" or not self.judge.names_moving(self.attempt.request):
            self.wrong("false_alarm", f"nothing calls for {code}")

    # --- confirmed -------------------------------------------------------------------------------

    def confirmed(self) -> None:
        answers: Sequence[Part] = self.answer["operations"]
        counts = Counter(answer["outcome"] for answer in answers)
        if [answer["index"] for answer in answers] != list(range(len(self.operations))) or any(
            counts[outcome] != self.answer[outcome] for outcome in OUTCOMES.values()
        ):
            self.wrong("wrong_answer", "the counts don't add up")
        hold_all = self.premises_moved()
        for n, (operation, answer) in enumerate(zip(self.operations, answers, strict=True)):
            outcome = answer["outcome"]
            if hold_all and outcome != "held":
                self.wrong("stale_premise", f"operations[{n}] was not held with the batch")
            rulings = []
            if operation["type"] != "create" and not self.repeated(n):
                rulings = self.of_operation(operation)
                self.outcome(n, outcome, rulings, hold_all=hold_all)
            if outcome == "applied":
                self.applied(n, operation, answer, rulings)
        if not self.answer["applied"] and self.written:
            self.wrong("wrong_answer", "nothing applied, and something written")

    def outcome(self, n: int, outcome: str, rulings: Sequence[Ruling], *, hold_all: bool) -> None:
        expected = {OUTCOMES.get(ruling.outcome, ruling.outcome) for ruling in rulings}
        if not hold_all and outcome not in expected:
            kind = "lost_update" if outcome == "applied" else "false_alarm"
            self.wrong(kind, f"operations[{n}] was {outcome}, and had to be {expected}")
            return
        if not hold_all and outcome == "held" and self.mode(self.operations[n]) == "reject":
            self.wrong("wrong_answer", f"operations[{n}] was held in mode reject")
        notification = self.notifications.get(("index", n))
        if notification is not None:
            self.notification(f"operations[{n}]", notification, rulings)
        elif expected == {"held"}:
            self.wrong("wrong_answer", f"operations[{n}]: a conflict that nobody is told of")

    def repeated(self, n: int) -> bool:
        """Whether an earlier operation of the batch meets the row, with which it is judged."""
        operation = self.operations[n]
        return "id" in operation and any(
            "id" in other and self.row(other) == self.row(operation)
            for other in self.operations[:n]
        )

    @cached_property
    def written(self) -> list[Change]:
        """What the commit has written, triggers and cascades included."""
        return self.audit.written(self.attempt)

    def applied(self, n: int, operation: Part, answer: Part, rulings: Sequence[Ruling]) -> None:
        """An applied operation has changed its row to what was asked, and no further."""
        row = operation["model"], str(answer["id"])
        own = [change for change in self.written if change.row == row]
        if not own:
            self.wrong("lost_write", f"operations[{n}] is applied, and nothing is written")
            return
        others = [a for a in self.answer["operations"] if a.get("id") == answer["id"]]
        if operation["type"] == "delete":
            if all(change.op != "delete" for change in own):
                self.wrong("lost_write", f"operations[{n}] deleted nothing")
        elif len(others) == 1 and own[-1].new is not None:
            was, now = own[0].old or {}, own[-1].new
            asked = [r.data for r in rulings if r.outcome == "apply"] or [typed(operation["data"])]
            if not any(
                all(
                    same(now[name], data[name]) if name in data else same(now[name], was.get(name))
                    for name in operation["data"]
                    if name in now
                )
                for data in asked
            ):
                self.wrong("lost_write", f"operations[{n}]: {was} became {now}")

    # --- refused ---------------------------------------------------------------------------------

    def stale(self) -> None:
        """All that is named was stale, some of it asked for refusal, and nothing is left out."""
        self.premises_moved()
        modes = {
            self.mode((self.premises if place == "read" else self.operations)[n])
            for place, n in self.notifications
        }
        if "reject" not in modes:
            self.wrong("false_alarm", "refused, and nothing that is stale asked for it")
        for n, operation in enumerate(self.operations):
            if operation["type"] == "create" or self.repeated(n):
                continue
            rulings = self.of_operation(operation)
            notification = self.notifications.get(("index", n))
            if notification is not None:
                self.notification(f"operations[{n}]", notification, rulings)
            elif {ruling.outcome for ruling in rulings} == {"stale"}:
                self.wrong("wrong_answer", f"operations[{n}] is stale too, and not named")

    def existence(self, code: str) -> None:
        place, n = _position(self.answer["error"]["param"])
        if place == "reads":
            sound = "not_found" in {r.outcome for r in self.of_premise(self.premises[n])}
        elif self.repeated(n):
            return
        elif code == "already_exists":
            row = self.row(self.operations[n])
            there = [self.audit.image(row, at) for at in self.until(row, target=False)]
            sound = any(image is not None for image in there)
        else:
            sound = "not_found" in {r.outcome for r in self.of_operation(self.operations[n])}
        if not sound:
            self.wrong("wrong_answer", f"{code} at {place}[{n}]")

    def condition(self) -> None:
        _, n = _position(self.answer["error"]["param"])
        operation = self.operations[n]
        where = typed(operation["where"])
        row = self.row(operation)
        images = [self.audit.image(row, at) for at in self.until(row, target=True)]
        if not self.judge.moving & where.keys() and all(
            image is not None and all(image[name] == value for name, value in where.items())
            for image in images
        ):
            self.wrong("wrong_answer", f"operations[{n}].where holds")

    # --- premises and notifications --------------------------------------------------------------

    def premises_moved(self) -> bool:
        """Whether some premise is stale, by the answer; each is checked on the way."""
        stale = False
        for n, premise in enumerate(self.premises):
            if self.mode(premise) == "overwrite":
                continue
            rulings = self.of_premise(premise)
            expected = {ruling.outcome for ruling in rulings}
            notification = self.notifications.get(("read", n))
            if notification is not None:
                stale = True
                self.notification(f"reads[{n}]", notification, rulings)
            elif "apply" not in expected:
                self.wrong("stale_premise", f"reads[{n}] had to be {expected}")
        return stale

    def notification(
        self, place: str, notification: Mapping[str, Any], rulings: Sequence[Ruling]
    ) -> None:
        stale = [ruling for ruling in rulings if ruling.outcome == "stale"]
        if not stale:
            self.wrong("false_alarm", f"{place} is said to be stale")
            return
        wrong = min(
            (self.differences(notification, r.conflict) if r.conflict else [] for r in stale),
            key=len,
        )
        if wrong:
            self.wrong("wrong_notification", f"{place}: {'; '.join(wrong)}")

    def differences(self, notification: Mapping[str, Any], conflict: Conflict) -> list[str]:
        fixed = self.judge.fixed
        by = notification["writtenBy"]
        fields = conflict.fields
        if notification["changesTruncated"] and not fields:
            # The look ends when every field conflicts; a whole-row change may lie beyond.
            fields = tuple(notification["conflictingFields"])
        said: dict[str, tuple[object, object]] = {
            "conflictingFields": (
                sorted(fixed(dict.fromkeys(notification["conflictingFields"]))),
                sorted(fixed(dict.fromkeys(fields))),
            ),
            "deleted": (notification["deleted"], conflict.deleted),
            "writtenBy": (by and (by["kind"], by["id"]), conflict.by),
        }
        for name, expected in (("baseValues", conflict.base), ("currentValues", conflict.current)):
            if not self.judge.agree(notification[name], expected):
                said[name] = notification[name], expected
        return [
            f"{name} is {one}, not {other}" for name, (one, other) in said.items() if one != other
        ]


def _position(param: str) -> tuple[str, int]:
    """`operations[3].id`: what, and which."""
    place, _, rest = param.partition("[")
    return place, int(rest.partition("]")[0])
