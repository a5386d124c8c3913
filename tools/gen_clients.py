"""The methods that all clients have in common: libpharaoh/_methods.py from the functions of libpharaoh/_calls.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from tools.gen_text import MARK

HEAD = '''\
"""Methods that all clients have. {mark}"""

from __future__ import annotations

from typing import Any, TypeVar

from libpharaoh import _calls
from libpharaoh._calls import Call, Route, Schema, Token
from libpharaoh._native import guarded
from libpharaoh._socket import Hello

_T = TypeVar("_T")
'''
CLASS = '''

class {name}:
    """Whoever inherits has `hello` and carries calls out."""

    __slots__ = ()

    @property
    def hello(self) -> Hello:
        """What the daemon said of itself."""
        raise NotImplementedError

    {start}def _call(self, call: Call[_T]) -> _T:
        raise NotImplementedError
'''


def declared(calls: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """The functions that make one `Call` of what a user passes, in the order of the file."""
    for name, function in vars(calls).items():
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != calls.__name__:
            continue
        if re.fullmatch(r"Call\[(?!tuple).*\]", str(inspect.signature(function).return_annotation)):
            yield name, function


def method(name: str, function: Callable[..., object], *, awaited: bool) -> str:
    signature = inspect.signature(function)
    shown = [one for one in signature.parameters.values() if one.name != "hello"]
    arguments = [f"{one.name}={one.name}" if one.kind is one.KEYWORD_ONLY else one.name for one in shown]
    if len(shown) < len(signature.parameters):
        arguments.append("hello=self.hello")
    result = str(signature.return_annotation)[len("Call[") : -1]
    parameters = str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))
    parameters = re.sub(r"'([^']*)'", r"\1", parameters).removeprefix("(").removesuffix(")")
    head = "async def" if awaited else "@guarded\n    def"
    doc = f"As `Client.{name}`." if awaited else (function.__doc__ or "").replace("\n    ", "\n        ")
    call = f"self._call(_calls.{name}({', '.join(arguments)}))"
    call = f"await {call}" if awaited else call
    statement = call if result == "None" else f"return {call}"
    all_parameters = ", ".join(["self", *([parameters] if parameters else [])])
    return f'\n    {head} {name}({all_parameters}) -> {result}:\n        """{doc}"""\n        {statement}\n'


def methods_module(calls: ModuleType) -> str:
    parts = [HEAD.format(mark=MARK.format(source="libpharaoh/_calls.py"))]
    for name, awaited in (("Methods", False), ("AsyncMethods", True)):
        parts.append(CLASS.format(name=name, start="async " if awaited else ""))
        parts += [method(*one, awaited=awaited) for one in declared(calls)]
    return "".join(parts)
