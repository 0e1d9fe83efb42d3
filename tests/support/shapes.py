"""Checks of shapes and types at each call, as jaxtyping makes them, for less than its own decorator takes.

That looks at arguments twice, to say which is wrong, and binds each call to the signature, for axes that
are named after an argument's value: no type of fastgen's has one. What is wrong is said by beartype here.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import isfunction, isgeneratorfunction
from typing import Any

import jaxtyping

OWN = jaxtyping.jaxtyped
SIZES = OWN("context")
"""Within it names of axes begin anew; it may be entered again meanwhile."""


def checked(member: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """In the place of `jaxtyping.jaxtyped`: sizes of equal name agree among the arguments and the result of a call."""
    if member is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(member, classmethod | staticmethod):
        return type(member)(checked(member.__func__, typechecker=typechecker))
    if isinstance(member, property):
        ways = (member.fget, member.fset, member.fdel)
        return property(*(way and checked(way, typechecker=typechecker) for way in ways))
    if not isfunction(member) or isgeneratorfunction(member):
        return OWN(member, typechecker=typechecker)
    within = typechecker(member)

    @wraps(member)
    def called(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return member(*args, **kwargs)
        with SIZES:
            return within(*args, **kwargs)

    return called
