"""The side of the wire that a model's program is on: it looks up, calls and compares what the tests ask for.

Nothing here needs to be trusted: whatever a program makes of it, what it can send is data.
"""

import _operator as operator
import builtins
import io
import sys
import types

from sandbox_wire import Peer

_FIXED = (int, float, complex, str, bytes, tuple, frozenset)
_MUTABLE = (list, dict, set)


class Program(Peer):
    """Answers for a program that has run, out of its namespace."""

    def __init__(self, read: int, write: int, names: dict):
        super().__init__(read, write)
        self._names = names
        self._kept, self._numbers = [], {}  # what crossed by number, and so must live on; id -> number
        self._loop = None

    def serve(self) -> None:
        """Until the tests are over."""
        while True:
            _, *asked = self.receive()
            self.answer(*asked)

    def answer(self, what: str, forms: list) -> None:
        """What was asked for; with it, what a call changed in what it was given, and what it printed."""
        given, printed, changed = [], io.TextIOWrapper(io.BytesIO(), "utf-8", "replace", "", write_through=True), []
        before, sys.stdout = sys.stdout, printed
        try:
            given = [self.decode(form) for form in forms]
            kind, said, _ = "value", self.encode(self.perform(what, *given)), ()
        except BaseException as error:  # SystemExit, too: the tests may expect it, and pass by nothing but their end
            kind, said, _ = self.raised(error)
        finally:
            sys.stdout = before
        if what == "call" and len(given) == 3:
            changed = self._changed(forms, given)
        self.send(kind, said, (changed, printed.buffer.getvalue().decode(errors="replace")))

    def _changed(self, forms: list, given: list) -> list:
        """(place, form) of each argument that is no longer what it was."""
        _, (_, before), (_, _, named) = forms
        _, values, keywords = given
        now = enumerate(zip([*before, *named], [*values, *keywords.values()], strict=True))
        renewed = [(n, form, self.encode(value)) for n, (form, value) in now if type(value) in _MUTABLE]
        return [(n, after) for n, form, after in renewed if after != form]

    def perform(self, what: str, *values):
        if what == "ready":
            return None
        if what == "get":
            if values[0] not in self._names:
                raise NameError(values[0])
            return self._names[values[0]]
        if what == "call":
            callee, given, named = values
            return callee(*given, **named)
        if what == "attribute":
            return getattr(*values)
        if what == "set":
            return setattr(*values)
        if what == "plain":
            return _plain(values[0])
        if what == "await":
            return self._await(values[0])
        return (getattr(operator, what, None) or getattr(builtins, what))(*values)

    def _await(self, coroutine):
        import asyncio

        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(coroutine)

    def encode_other(self, value) -> tuple:
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            base = next(base for base in value.__bases__ if issubclass(base, BaseException))
            return "exception", self._keep(value), value.__name__, self.encode(base)
        if kind is types.CoroutineType:
            return "coroutine", self._keep(value)
        if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", None):
            return self.encode(value.item())
        if kind.__module__ != "__main__" and isinstance(value, _FIXED + _MUTABLE):  # defaultdict
            return self.encode(_plain(value)[0])
        return "kept", self._keep(value), *map(self.encode, _plain(value, _FIXED))

    def _keep(self, value) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]

    def decode_other(self, kind: str, *given):
        if kind == "kept":
            return self._kept[given[0]]
        number = given[0]
        if kind == "function":
            return lambda *values, **named: self.ask("call", number, values, named)
        return self._steps(number)

    def _steps(self, number: int):
        while True:
            try:
                step = self.ask("next", number)
            except StopIteration:
                return
            yield step


def _plain(value, bases: tuple[type, ...] = _FIXED + _MUTABLE) -> tuple:
    """(what it is as plain data,), or () for what is of no plain kind."""
    for base in bases:
        if isinstance(value, base):
            return (str.__str__(value) if base is str else base(value),)
    return ()


def run(code: types.CodeType, names: dict) -> None:
    """The program, and then what the tests ask of it."""
    exec(code, names)
    Program(4, 5, names).serve()
