"""How a model's program and its tests talk, each in a process of its own: plain data crosses, all else stays at home.

A number, a text, bytes and None cross as they are; everything else as a tuple that begins with its kind: a container
with what it holds, a value of the few classes in `_MADE` with what makes it anew, or the number of something that the
other side has kept. What arrives is rebuilt from built-in types alone, so on the side of the tests there is no class,
and no comparison, that a program wrote.

Messages are marshal behind their length: importing json would cost a third of a start. marshal reads whatever a
program may have written there; a reader that breaks on it is a test that fails, in a process that holds that test only.
"""

import _thread
import builtins
import marshal
import os
import struct
import sys

SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
TYPES = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
_ARRAYS = "biufc"  # the kinds of numpy's numbers
_MADE = {  # class -> what its value is made of again
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "builtins.slice": lambda value: (value.start, value.stop, value.step),
    "builtins.bytearray": lambda value: (bytes(value),),
    "builtins.ellipsis": lambda value: (),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "collections.Counter": lambda value: (dict(value),),
    "collections.OrderedDict": lambda value: (dict(value),),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "decimal.Decimal": lambda value: (str(value),),
    "datetime.date": lambda value: value.__reduce__()[1],
    "datetime.time": lambda value: value.__reduce__()[1],
    "datetime.datetime": lambda value: value.__reduce__()[1],
    "datetime.timedelta": lambda value: value.__reduce__()[1],
}


class Peer:
    """One end of the wire. A side says what it does when asked, what else it can write and read, and how it ends."""

    def __init__(self, read: int, write: int):
        self._read, self._write = read, write
        self._lock = _thread.RLock()  # tests and programs have threads

    def perform(self, what: str, *values):
        """What the other side asks for."""
        raise NotImplementedError

    def encode_other(self, value) -> tuple:
        """What is no plain data, as a tuple of plain data."""
        raise NotImplementedError

    def decode_other(self, kind: str, *given):
        """What the other side has made of what is no plain data."""
        raise NotImplementedError

    def hear(self, asked: tuple, notes: tuple) -> None:
        """What came with an answer to what was asked."""

    def end(self) -> None:
        """The other side is gone."""
        os._exit(1)

    def ask(self, what: str, *values):
        """What the other side answers, or raises; before that it may ask back."""
        with self._lock:
            self.send("ask", what, [self.encode(value) for value in values])
            while True:
                kind, *said = self.receive()
                if kind == "ask":
                    self.answer(*said)
                    continue
                given, notes = said
                self.hear(values, notes)
                if kind == "value":
                    return self.decode(given)
                raise self._error(given)

    def answer(self, what: str, forms: list) -> None:
        """Do what the other side asks for, and say what came of it."""
        try:
            answer = "value", self.encode(self.perform(what, *map(self.decode, forms))), ()
        except BaseException as error:  # of a program, and the tests may expect it
            answer = self.raised(error)
        self.send(*answer)

    def raised(self, error: BaseException) -> tuple:
        try:
            return "error", (self.encode(type(error)), self.encode(error.args)), ()
        except Exception:  # it holds what cannot cross
            return "error", (self.encode(type(error)), self.encode((str(error),))), ()

    def _error(self, form: tuple) -> BaseException:
        kind, given = map(self.decode, form)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError("what was raised is no exception")
        try:
            return kind(*given)
        except TypeError:  # such as UnicodeDecodeError, of which a subclass may have made something else
            return RuntimeError(*given)

    def encode(self, value):
        """The form in which a value crosses."""
        kind = type(value)
        if kind in SCALARS:
            return value
        if CONTAINERS.get(kind.__name__) is kind:
            return kind.__name__, self._encode_all(value)
        if kind is dict:
            return "dict", self._encode_all(value), self._encode_all(value.values())
        if isinstance(value, type) and TYPES.get(value.__name__) is value:
            return "type", value.__name__
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _MADE:
            return "made", name, self.encode(_MADE[name](value))
        if name == "numpy.ndarray" and value.dtype.kind in _ARRAYS:
            return "array", value.dtype.str, list(value.shape), value.tobytes()
        return self.encode_other(value)

    def _encode_all(self, values) -> list:
        values = list(values)
        return values if SCALARS.issuperset(map(type, values)) else [self.encode(value) for value in values]

    def decode(self, form):
        """The value of a form; anything that is no form raises."""
        if type(form) in SCALARS:
            return form
        kind, *given = form
        if kind in CONTAINERS:
            return CONTAINERS[kind](self._decode_all(*given))
        if kind == "dict":
            return dict(zip(*map(self._decode_all, given), strict=True))
        if kind == "type":
            return TYPES[given[0]]
        if kind == "made":
            return _make(given[0], self.decode(given[1]))
        if kind == "array":
            return _array(*given)
        return self.decode_other(kind, *given)

    def _decode_all(self, forms: list) -> list:
        return forms if SCALARS.issuperset(map(type, forms)) else [self.decode(form) for form in forms]

    def send(self, *message) -> None:
        data = marshal.dumps(message)
        data = memoryview(struct.pack("=Q", len(data)) + data)
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except BrokenPipeError:
            self.end()

    def receive(self) -> tuple:
        (size,) = struct.unpack("=Q", self._exactly(8))
        return marshal.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = os.read(self._read, min(size - len(data), 1 << 20))
            if not more:
                self.end()
            data += more
        return bytes(data)


def _make(name: str, given: tuple):
    if name not in _MADE:
        raise TypeError(f"a value of the class {name} cannot cross")
    module, _, kind = name.rpartition(".")
    if kind == "ellipsis":
        return ...
    __import__(module)
    return getattr(sys.modules[module], kind)(*given)


def _array(dtype: str, shape: list, data: bytes):
    import numpy

    kind = numpy.dtype(dtype)
    if kind.kind not in _ARRAYS:
        raise TypeError(f"an array of {dtype} cannot cross")
    return numpy.frombuffer(data, kind).reshape(shape).copy()
