"""The manifest's JSON Schema in docs/ is the contract's, and it describes real bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ebseg_deploy
import jsonschema
import pytest
from ebseg_deploy.contract import SCHEMA_VERSION, bundle_json_schema

FILE = Path(ebseg_deploy.__file__).parent / "docs" / "schema" / f"bundle-{SCHEMA_VERSION}.json"


def test_schema_in_the_docs_is_current() -> None:
    wanted = json.dumps(bundle_json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert FILE.read_text() == wanted, "run `make schema`"


def test_schema_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(bundle_json_schema())


def test_a_bundle_fits(tiny_bundle: Path) -> None:
    jsonschema.validate(json.loads((tiny_bundle / "bundle.json").read_text()), json.loads(FILE.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(extra=1),
        lambda manifest: manifest.pop("model"),
        lambda manifest: manifest["model"].update(queries="many"),
        lambda manifest: manifest["graphs"][0].update(name="neck"),
        lambda manifest: manifest["graphs"][0]["spec"]["inputs"][0].update(dtype="int64"),
        lambda manifest: manifest["sizes"][0].pop("width"),
    ],
    ids=["extra field", "no model", "wrong type", "unknown graph", "unknown dtype", "half a size"],
)
def test_another_thing_does_not(tiny_bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    change(manifest)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, json.loads(FILE.read_text()))
