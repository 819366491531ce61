"""Make vocabulary_split.json from the labels that EBSeg's published code gives its benchmark classes.

    python make_vocabulary_split.py labels.json

labels.json: benchmark name -> list, in label order, of {"prompt": name as it is put into the prompts, "seen": 0 or 1},
written down from a run of the published code. Kept of it: how many classes, a hash of their names, and one character
a class for the flags.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("vocabulary_split.json")


def main(labels: Path) -> None:
    split = {}
    for benchmark, classes in json.loads(labels.read_text(encoding="utf-8")).items():
        names = "\n".join(each["prompt"] for each in classes)
        split[benchmark] = {
            "classes": len(classes),
            "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "seen": "".join(str(int(each["seen"])) for each in classes),
        }
    TARGET.write_text(json.dumps(split, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
