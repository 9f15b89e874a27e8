"""Writes ../data/delta/: weight versions as slime publishes them, by other libraries than patchhost's.

    pip install numpy==2.4.6 safetensors==0.8.0 zstandard==0.25.0 xxhash==4.1.0 blake3==1.0.11
    python make_slime_delta.py ../data/delta        # seed 5, a second

An independent writer of the form that `host/app/src/checkpoint/versions/mod.rs` describes, made from what slime's
`update_weight_from_disk_delta` and SGLang's `/pull_weights` do, not from patchhost's code:

    base/model.safetensors                version 0, every dtype that weights have, odd sizes
    published/weight_v000001              xor, xxh3-128, two shards numbered from 0
    published/weight_v000002              overwrite, adler32; versions are numbers
    published/weight_v000003              nothing changed: no shard
    published/weight_v000004              a full version: model.safetensors alone, no index
    published/weight_v000005              xor on the full one
    blake3/weight_v000001                 blake3, slime's other strong checksum
    expected/v00000N.safetensors          what each version is
"""

import json
import sys
import zlib
from pathlib import Path

import blake3
import numpy as np
import safetensors
import safetensors.numpy
import xxhash
import zstandard

# name: (dtype as the raw interface of safetensors wants it, bytes per element, shape)
TENSORS = {
    "model.embed.weight": ("bfloat16", 2, (7, 9)),
    "model.layers.0.a.weight": ("float8_e4m3fn", 1, (13, 5)),
    "model.layers.0.a.weight_scale_inv": ("float32", 4, (1, 1)),
    "model.layers.0.b.weight": ("float16", 2, (3, 11)),
    "model.norm.weight": ("float32", 4, (17,)),
    "model.scalar": ("float32", 4, ()),
    "model.steps": ("int64", 8, (3,)),
}

CHECKSUMS = {
    "xxh3-128": lambda raw: xxhash.xxh3_128(raw).hexdigest(),
    "adler32": lambda raw: f"{zlib.adler32(raw):08x}",
    "blake3": lambda raw: blake3.blake3(raw).hexdigest(),
}


def spec(dtype, shape, raw):
    return safetensors.TensorSpec(dtype=dtype, shape=list(shape), data_ptr=raw.ctypes.data, data_len=raw.nbytes)


def save(path, state):
    """A plain checkpoint in one file."""
    tensors = {name: spec(dtype, shape, state[name]) for name, (dtype, _, shape) in TENSORS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(safetensors.serialize(tensors, None)))


def difference(encoding, old, new):
    if encoding == "xor":
        return (old ^ new).tobytes()
    where = np.nonzero(old != new)[0]
    return len(where).to_bytes(4, "little") + where.astype("<u4").tobytes() + new[where].tobytes()


def publish(folder, version, old, new, encoding, algorithm, shards=1, numbers=False):
    folder.mkdir(parents=True)
    changed = sorted(name for name in new if not np.array_equal(old[name], new[name]))
    weight_map = {}
    for shard in range(shards if changed else 0):
        file = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        tensors, checksums = {}, {}
        for name in changed[shard::shards]:
            frame = zstandard.ZstdCompressor(level=1).compress(difference(encoding, old[name], new[name]))
            tensors[name] = np.frombuffer(frame, dtype=np.uint8)
            checksums[name] = CHECKSUMS[algorithm](new[name].tobytes())
            weight_map[name] = file
        # (safetensors writes the checksums in an order that differs from run to run.)
        (folder / file).write_bytes(safetensors.numpy.save(tensors, checksums))
    form = int if numbers else "{:06d}".format
    metadata = {
        "version": form(version),
        "base_version": form(version - 1),
        "delta_encoding": encoding,
        "compression_format": "zstd",
        "checksum_format": algorithm,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def main(out):
    random = np.random.default_rng(5)
    # Bytes below 0x70: no NaN in any of the dtypes.
    fresh = lambda name: random.integers(0, 0x70, TENSORS[name][1] * int(np.prod(TENSORS[name][2])), dtype=np.uint8)

    def step(state, names, share):
        state = {name: raw.copy() for name, raw in state.items()}
        for name in names:
            raw = state[name]
            where = random.random(raw.size) < share
            where[random.integers(raw.size)] = True
            raw[where] = (raw[where] + random.integers(1, 0x6F, where.sum())) % 0x70
        return state

    names = list(TENSORS)
    v0 = {name: fresh(name) for name in names}
    v1 = step(v0, names[:5], 0.2)
    v2 = step(v1, names[1:], 0.1)
    v4 = step(v2, names, 0.9)
    v5 = step(v4, names[:3], 0.01)
    save(out / "base/model.safetensors", v0)
    publish(out / "published/weight_v000001", 1, v0, v1, "xor", "xxh3-128", shards=2)
    publish(out / "published/weight_v000002", 2, v1, v2, "overwrite", "adler32", numbers=True)
    publish(out / "published/weight_v000003", 3, v2, v2, "xor", "xxh3-128")
    save(out / "published/weight_v000004/model.safetensors", v4)
    publish(out / "published/weight_v000005", 5, v4, v5, "xor", "adler32")
    publish(out / "blake3/weight_v000001", 1, v0, v1, "xor", "blake3")
    for version, state in ((1, v1), (2, v2), (3, v2), (4, v4), (5, v5)):
        save(out / f"expected/v{version:06d}.safetensors", state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
