"""Reads random pickles and says in JSON how many gave a value and how much memory they took: COUNT SEED."""

import json
import pickle
import pickletools
import random
import resource
import struct
import sys

from gpt2.formats.pickles import Reader

WORDS = (
    b"c_codecs\nencode\n",
    b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n",
    b"ca.b\nC\n",
    b"cposix\nsystem\n",
)
CODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def random_pickle(rng: random.Random) -> bytes:
    if rng.random() < 0.3:  # an intact one with a few changed bytes
        data = bytearray(pickle.dumps({"a": [1, 2.5, "text", (None, {1})], "b": {2: b"x" * 50}}, rng.randrange(6)))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    pieces = [b"(" if rng.random() < 0.5 else b"", b"]", b"K\x01", b"q\x00"]
    for _ in range(rng.randrange(200)):
        pieces.append(
            rng.choice(
                (
                    rng.choice(CODES),
                    rng.choice(WORDS),
                    rng.choice((b"(", b"]", b"}", b")", b"N", b"h\x00", b"q\x00", b"\x85", b"\x86", b"2", b"0")),
                    rng.choice(
                        (b"R", b"b", b"\x81", b"s", b"u", b"a", b"e", b"t", b"l", b"d", b"\x8f", b"\x90", b"o")
                    ),
                    b"X" + struct.pack("<I", 2) + b"ab",
                    b"r" + rng.randbytes(4),
                    rng.randbytes(rng.randrange(10)),
                )
            )
        )
    return b"".join([*pieces, b"."])


if __name__ == "__main__":
    count, seed = map(int, sys.argv[1:])
    rng, values = random.Random(seed), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        try:
            Reader(random_pickle(rng)).load()
        except Exception:
            continue
        values += 1
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"values": values, "megabytes": kilobytes / 1024}, sys.stdout)
