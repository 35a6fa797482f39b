"""The side of the wire that the tests are on. The program never runs here; what it says arrives as data.

A name that the tests do not define themselves is asked of the program when it is needed. What is no plain data (a
function, a class, an object) is a `Remote` here: it can be called, looked into and compared with its own kind, and the
program answers. With plain data it is compared here, by what it says it is as plain data, not knowing with what.
"""

import _operator as operator
import builtins
import marshal
import os
import sys
import types

from sandbox_wire import TYPES, Peer

_SAID = {"__next__": "next", "__bool__": "truth", "__str__": "str", "__repr__": "repr", "__hash__": "hash"}
_COUNTED = {
    "__len__": "len", "__iter__": "iter", "__float__": "float", "__int__": "int", "__index__": "index",
    "__abs__": "abs", "__neg__": "neg", "__reversed__": "reversed",
}  # fmt: skip
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
_REFLECTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_OPEN = ("__name__", "__doc__")  # numpy reads memory where other such attributes tell it to


class Remote:
    """Something of the program's that stayed there. Of what cannot change, such as a named tuple, the plain data came
    along, once and for all."""

    __slots__ = ("__judge", "__number", "__plain")

    def __init__(self, judge: "Judge", number: int, plain: tuple):
        object.__setattr__(self, "_Remote__judge", judge)
        object.__setattr__(self, "_Remote__number", number)
        object.__setattr__(self, "_Remote__plain", plain)

    def __call__(self, *values, **named):
        return self.__judge.ask("call", self, values, named)

    def __getattr__(self, name: str):
        if name.startswith("__") and name.endswith("__") and name not in _OPEN:
            raise AttributeError(name)
        return self.__judge.ask("attribute", self, name)

    def __setattr__(self, name: str, value) -> None:
        self.__judge.ask("set", self, name, value)

    def __instancecheck__(self, value) -> bool:
        return type(value) is Remote and self.__judge.ask("isinstance", value, self)

    def __subclasscheck__(self, kind) -> bool:
        return type(kind) is Remote and self.__judge.ask("issubclass", kind, self)

    def __enter__(self):
        return self.__judge.ask("attribute", self, "__enter__")()

    def __exit__(self, *raised) -> None:
        self.__judge.ask("attribute", self, "__exit__")(None, None, None)


# Outside of the class: an attribute of whatever name may be the program's.
_number = operator.attrgetter("_Remote__number")


def _asked(remote: Remote, what: str, *values):
    return remote._Remote__judge.ask(what, remote, *values)


def _told(what: str):
    return lambda remote, *given: _asked(remote, what, *given)


def _counted(what: str):
    """Of its plain data, where it has brought them."""
    function = getattr(operator, what, None) or getattr(builtins, what)

    def method(remote: Remote, *given):
        plain = remote._Remote__plain
        return function(*plain, *given) if plain else _asked(remote, what, *given)

    return method


def _binary(what: str, is_reflected: bool = False):
    function = getattr(operator, what)

    def method(remote: Remote, other):
        if type(other) is Remote:
            return _asked(remote, what, other)
        plain = remote._Remote__plain or _asked(remote, "plain")
        if type(plain) is not tuple or len(plain) != 1 or type(plain[0]) is Remote:
            return NotImplemented
        return function(other, *plain) if is_reflected else function(*plain, other)

    return method


for _name, _what in _SAID.items():
    setattr(Remote, _name, _told(_what))
for _name, _what in _COUNTED.items():
    setattr(Remote, _name, _counted(_what))
for _name in _COMPARED:
    setattr(Remote, f"__{_name}__", _binary(_name))
for _name in _REFLECTED:
    _what = f"{_name}_" if _name in ("and", "or") else _name
    setattr(Remote, f"__{_name}__", _binary(_what))
    setattr(Remote, f"__r{_name}__", _binary(_what, is_reflected=True))
Remote.__doc__ = property(lambda remote: _asked(remote, "attribute", "__doc__"))  # found before any `__getattr__`
for _name in ("setitem", "delitem"):
    setattr(Remote, f"__{_name}__", _told(_name))
Remote.__getitem__ = _counted("getitem")


class Judge(Peer):
    """Asks for the tests. The program may ask back for nothing but the functions and iterators that it was given."""

    def __init__(self, read: int, write: int):
        super().__init__(read, write)
        self._remotes, self._exceptions, self._given = {}, {}, []

    def end(self) -> None:
        os.write(3, b"gone")
        os._exit(1)

    def perform(self, what: str, *values):
        if what == "next":
            return next(self._given[values[0]])
        number, given, named = values
        return self._given[number](*given, **named)

    def hear(self, asked: tuple, notes: tuple) -> None:
        changed, printed = notes
        if printed:
            sys.stdout.write(printed)
        for place, form in changed:
            _, values, named = asked
            _renew([*values, *named.values()][place], self.decode(form))

    def encode_other(self, value) -> tuple:
        if type(value) is Remote:
            return "kept", _number(value)
        if isinstance(value, type) and issubclass(value, BaseException):  # raised in a function of the tests
            return self.encode(next(kind for kind in value.__mro__ if TYPES.get(kind.__name__) is kind))
        if hasattr(value, "__next__"):
            return "steps", self._give(value)
        if callable(value) and not isinstance(value, type):
            return "function", self._give(value)
        raise TypeError(f"tests hand a program plain data, functions and iterators, and this is {type(value)}")

    def _give(self, value) -> int:
        self._given.append(value)
        return len(self._given) - 1

    def decode_other(self, kind: str, *given):
        if kind == "kept":
            number, *plain = given
            if number not in self._remotes:
                self._remotes[number] = Remote(self, number, tuple(map(self.decode, plain[:1])))
            return self._remotes[number]
        if kind == "coroutine":
            return self._wait(Remote(self, given[0], ()))
        if kind != "exception":
            raise TypeError(f"there is no {kind}")
        number, name, base = given
        if number not in self._exceptions:
            base = self.decode(base)
            assert isinstance(base, type) and issubclass(base, BaseException)
            self._exceptions[number] = type(name, (base,), {})
        return self._exceptions[number]

    async def _wait(self, coroutine: Remote):
        return self.ask("await", coroutine)


def _renew(held, now) -> None:
    """Make of an argument what the program made of its own."""
    if type(held) is not type(now):
        raise TypeError("an argument has become something else")
    held.clear()
    held.extend(now) if type(held) is list else held.update(now)


class Names(dict):
    """The namespace of the tests. A builtin is Python's own, whatever a program calls so, but for those in `theirs`."""

    def __init__(self, judge: Judge, theirs: tuple[str, ...]):
        super().__init__(__name__="__main__", __builtins__=builtins)
        self._judge, self._theirs = judge, theirs

    def __missing__(self, name: str):
        if hasattr(builtins, name) and name not in self._theirs:
            raise KeyError(name)
        try:
            return self._judge.ask("get", name)
        except NameError:
            raise KeyError(name) from None


def run(tests: bytes) -> None:
    """Run the tests; what they pass by is that their end is reached."""
    try:
        statements, modules, theirs = marshal.loads(tests)
        judge = Judge(4, 5)
        names = Names(judge, theirs)
        code: types.CodeType = compile(statements, "tests.py", "exec", dont_inherit=True)
        for name, module in modules:
            try:
                names[name] = __import__(module)
            except ImportError:  # then it may be one of the program's
                pass
        judge.ask("ready")
        exec(code, names)
        os.write(3, b"passed")
    finally:
        os._exit(0)
