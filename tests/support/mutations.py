"""Files that were changed at random places, by a seed: values of other types, cut bytes, other encodings."""

import copy
import gzip
import json
import math

#: Put in place of values; those in angle brackets become JSON that Python does not write.
HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(2**31, 2**63, -(2**63), 3_000_000_000, 10**400, "<digits>", "<nested>"),
    *("", " ", "1", "1_0", "-1", "nan", "x" * 5000, "\ud800", "\0", "\x1b[31m", "../../x", "/dev/zero", "٣", "\ufeff"),
    *([], {}, [[[]]], [None], [[]], {"": None}, {"a": {"b": []}}, [1, "a"], ["x"] * 30),
]
RAW = {'"<digits>"': "1" * 5000, '"<nested>"': "[" * 1500 + "]" * 1500}


def places(value, path=()):
    """Paths of all values in a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value, rng):
    """A copy of a value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(value)))
        new = copy.deepcopy(rng.choice(HOSTILE))
        if not path:
            if rng.random() < 0.9:
                continue
            return new
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        last = path[-1]
        kind = rng.random()
        if kind < 0.15:
            del holder[last]
        elif kind < 0.25 and isinstance(holder, dict):
            holder[rng.choice(["", "x" * 300, "\0", str(last) + "_"])] = holder.pop(last)
        elif kind < 0.3 and isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[last])] * rng.randint(1, 20))
        else:
            holder[last] = new
    return value


def text_of(value):
    """A value as JSON, whatever is in it."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(name, raw)
    return text


def spoilt(data, rng):
    """Bytes that were cut, flipped, doubled or encoded otherwise; mostly as they were."""
    kind, place = rng.random(), rng.randrange(len(data) + 1)
    if kind < 0.85:
        return data
    return rng.choice(
        [
            data[:place],
            data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
            data[:place] + data[place : place + 50] * 3 + data[place:],
            b"\xef\xbb\xbf" + data,
            gzip.compress(data),
            data.decode(errors="replace").encode("utf-16"),
            bytes(len(data)),
            b"",
        ]
    )


def mutated_json(value, rng):
    """The bytes of a JSON document like ``value``."""
    return spoilt(text_of(changed(value, rng)).encode("utf-8", "surrogatepass"), rng)


def mutated_lines(rows, rng):
    """The bytes of JSON lines like ``rows``, of which one or two are changed."""
    rows = list(rows)
    chosen = rng.choices(range(len(rows)), k=rng.randint(1, 2))
    lines = [text_of(changed(row, rng) if number in chosen else row) for number, row in enumerate(rows)]
    return spoilt("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"), rng)
