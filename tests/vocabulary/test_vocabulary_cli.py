"""`ebseg vocab`: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from ebseg_deploy.cli import ebseg
from ebseg_deploy.runtime.vocabulary import Vocabulary

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(ebseg, ["vocab", *map(str, words)])


@pytest.fixture
def pets(run: Run, tiny_bundle: Path) -> Path:
    assert run("build", tiny_bundle, "--classes", "cat, red fox", "-o", "pets.safetensors").exit_code == 0
    return Path("pets.safetensors")


def failed(outcome: Result, *parts: str, code: int = 1) -> None:
    """The error is one line on stderr with these parts, and stdout is empty."""
    assert outcome.exit_code == code, outcome.output
    assert outcome.stdout == ""
    if code == 1:
        assert outcome.stderr.startswith("error: ")
        assert outcome.stderr.count("\n") == 1
    for part in parts:
        assert part in outcome.stderr


def test_build_from_names(run: Run, tiny_bundle: Path) -> None:
    outcome = run("build", tiny_bundle, "--classes", "cat, red fox", "-o", "pets.safetensors")
    assert outcome.stdout == "wrote pets.safetensors: 2 classes, 1 seen in training\n"
    assert outcome.stderr == ""
    vocabulary = Vocabulary.load("pets.safetensors")
    assert vocabulary.names == ("cat", "red fox")
    assert vocabulary.seen.tolist() == [True, False]


def test_build_from_a_file_with_flags(run: Run, tiny_bundle: Path) -> None:
    Path("words.json").write_text('["cat", {"name": "hound", "synonyms": ["dog"]}, "fox"]')
    outcome = run(
        "build", tiny_bundle, "--file", "words.json", "--seen", "FOX", "--new", "cat", "--json", "-o", "v.safetensors"
    )
    report = json.loads(outcome.stdout)
    assert (report["path"], report["classes"], report["seen"]) == ("v.safetensors", 3, 2)
    assert report["encoder_sha256"] == Vocabulary.load("v.safetensors").encoder_sha256
    assert Vocabulary.load("v.safetensors").seen.tolist() == [False, True, True]
    assert Vocabulary.load("v.safetensors").synonyms == ((), ("dog",), ())


def test_build_a_benchmark(run: Run, tiny_bundle: Path) -> None:
    outcome = run("build", tiny_bundle, "--dataset", "pascal-context-59", "-o", "pc.safetensors")
    assert outcome.stdout == "wrote pc.safetensors: 59 classes, 51 seen in training\n"


def test_near_duplicates_warn_on_stderr(run: Run, tiny_bundle: Path) -> None:
    outcome = run("build", tiny_bundle, "--classes", "cat,cats", "--json", "-o", "v.safetensors")
    assert outcome.exit_code == 0
    assert outcome.stderr.startswith("warning: 'cat' and 'cats' are nearly the same class")
    assert json.loads(outcome.stdout)["warnings"] == [outcome.stderr.removeprefix("warning: ").rstrip("\n")]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--classes", " "], ["no class names", "give at least one"]),
        (["--classes", "cat,,dog"], ["name 2 is blank"]),
        (["--classes", "cat,Cat"], ["the same name more than once: 'cat'", "keep one of each"]),
        (["--dataset", "voc20"], ["no benchmark 'voc20'", "did you mean voc-20?"]),
        (["--file", "none.txt"], ["class file none.txt", "No such file"]),
        (["--classes", "cat", "--seen", "dog"], ["no class 'dog'"]),
        (["--classes", "cat", "--precision", "fp8"], ["no precision 'fp8'"]),
        (["--classes", "cat", "--backend", "warp"], ["backend 'warp'"]),
    ],
)
def test_build_refuses_in_one_line_and_writes_nothing(
    words: list[str], parts: list[str], run: Run, tiny_bundle: Path
) -> None:
    failed(run("build", tiny_bundle, *words, "-o", "v.safetensors"), *parts)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--classes", "cat", "--dataset", "voc-20"]])
def test_build_takes_exactly_one_source(words: list[str], run: Run, tiny_bundle: Path) -> None:
    failed(run("build", tiny_bundle, *words, "-o", "v.safetensors"), "give exactly one of", code=2)


def test_outputs_that_cannot_be_written(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = ("build", tiny_bundle, "--classes", "cat", "-o")
    failed(run(*build, "none/v.safetensors"), "there is no folder none", "can be written to")
    failed(run(*build, "v.txt"), "does not end in .safetensors", code=2)
    Path("d.safetensors").mkdir()
    failed(run(*build, "d.safetensors"), "is a folder")
    monkeypatch.setattr("os.access", lambda *_: False)
    failed(run(*build, "v.safetensors"), "its folder cannot be written to")


def test_a_bundle_with_a_flipped_byte(run: Run, tiny_bundle_copy: Path) -> None:
    graph = next((tiny_bundle_copy / "graphs").rglob("text_encoder.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    failed(run("build", tiny_bundle_copy, "--classes", "cat", "-o", "v.safetensors"), "sha256", "text_encoder.onnx")


def test_add(run: Run, pets: Path, tiny_bundle: Path) -> None:
    outcome = run("add", pets, tiny_bundle, "--classes", "dog, Red Foxes", "--new", "dog", "-o", pets)
    assert outcome.stdout == "wrote pets.safetensors: 4 classes, 1 seen in training\n"
    assert outcome.stderr.startswith("warning: 'red fox' and 'Red Foxes'")
    assert outcome.stderr.count("\n") == 1
    assert Vocabulary.load(pets).names == ("cat", "red fox", "dog", "Red Foxes")
    failed(run("add", pets, tiny_bundle, "--classes", "CAT", "-o", "v.safetensors"), "more than once: 'cat'")


def test_add_with_another_bundle(run: Run, pets: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    before = pets.read_bytes()
    failed(
        run("add", pets, make_tiny_bundle(seed=1), "--classes", "dog", "-o", pets),
        "vocabulary made by text encoder",
        "build it again with this bundle",
    )
    assert pets.read_bytes() == before


def test_remove(run: Run, pets: Path) -> None:
    outcome = run("remove", pets, "Red fox", "-o", "cat.safetensors")
    assert outcome.stdout == "wrote cat.safetensors: 1 class, 1 seen in training\n"
    failed(run("remove", pets, "red foxx", "-o", "v.safetensors"), "no class 'red foxx'", "did you mean 'red fox'?")
    failed(run("remove", "none.safetensors", "cat", "-o", "v.safetensors"), "no such file")


def test_merge(run: Run, pets: Path, tiny_bundle: Path) -> None:
    run("build", tiny_bundle, "--classes", "dog, cat, cats, foxes", "-o", "more.safetensors")
    twice = run("merge", pets, "more.safetensors", "-o", "all.safetensors")
    failed(twice, "more than once: 'cat'", "`ebseg vocab merge --keep-first`")
    outcome = run("merge", pets, "more.safetensors", "--keep-first", "--json", "-o", "all.safetensors")
    assert Vocabulary.load("all.safetensors").names == ("cat", "red fox", "dog", "cats", "foxes")
    assert [warning[:16] for warning in json.loads(outcome.stdout)["warnings"]] == ["'cat' and 'cats'"]


def test_pairs_that_were_warned_of_when_built_are_not_warned_of_again(run: Run, tiny_bundle: Path) -> None:
    run("build", tiny_bundle, "--classes", "cat, cats", "-o", "cats.safetensors")
    assert run("add", "cats.safetensors", tiny_bundle, "--classes", "dog", "-o", "more.safetensors").stderr == ""
    run("build", tiny_bundle, "--classes", "fox", "-o", "fox.safetensors")
    assert run("merge", "more.safetensors", "fox.safetensors", "-o", "all.safetensors").stderr == ""


def test_list(run: Run, tiny_bundle: Path) -> None:
    plain = run("list").stdout
    assert "ade20k-847" in plain
    report = json.loads(run("list", tiny_bundle, "--json").stdout)
    assert [(each["classes"], each["seen"]) for each in report["benchmarks"]] == [
        (20, 20),
        (59, 51),
        (459, 94),
        (150, 67),
        (847, 115),
        (171, 171),
    ]
    assert report["bundle"] == []


def with_training_names(bundle: Path, *names: str) -> Path:
    """The bundle, trained on other classes than COCO-Stuff's."""
    from ebseg_deploy.runtime.bundle import read_manifest
    from tiny_bundles import seal

    manifest = read_manifest(bundle)
    text = msgspec.structs.replace(manifest.text, training_names=names)
    return seal(bundle, msgspec.structs.replace(manifest, text=text))


def test_a_bundle_says_what_it_has_seen(run: Run, tiny_bundle: Path, tiny_bundle_copy: Path) -> None:
    assert "training_names" not in (tiny_bundle / "bundle.json").read_text(), "seals made before stay valid"
    own = with_training_names(tiny_bundle_copy, "owl", "road, route")
    words = "owl,Owls,person,route,red fox"
    for bundle, seen in ((tiny_bundle, [0, 0, 1, 0, 0]), (own, [1, 1, 0, 1, 0])):
        assert run("build", bundle, "--classes", words, "--no-cache", "-o", "v.safetensors").exit_code == 0
        assert Vocabulary.load("v.safetensors").seen.tolist() == seen
    listed = json.loads(run("list", own, "--json").stdout)["benchmarks"]
    assert {each["name"]: each["seen"] for each in listed}["voc-20"] == 0
    assert {each["name"]: each["seen"] for each in listed}["ade20k-150"] == 1  # road, route
    Path("words.txt").write_text("owl\nperson\n")
    for words, flags in ((["words.txt"], [False, True]), (["words.txt", own], [True, False])):
        shown = json.loads(run("show", *words, "--json").stdout)["classes"]
        assert [each["seen"] for each in shown] == flags
    assert "0 owl seen" in " ".join(run("show", "words.txt", own).stdout.split())
    # A flag that was given still holds.
    assert run("build", own, "--classes", "owl", "--new", "owl", "-o", "v.safetensors").exit_code == 0
    assert not Vocabulary.load("v.safetensors").seen.any()


def test_list_names_a_bundles_own_vocabularies(run: Run, pets: Path, tiny_bundle_copy: Path) -> None:
    import tiny_bundles
    from ebseg_deploy.runtime.bundle import Bundle

    (tiny_bundle_copy / "vocabularies" / "pets.safetensors").write_bytes(pets.read_bytes())
    tiny_bundles.seal(tiny_bundle_copy, Bundle.open(tiny_bundle_copy).manifest)
    report = json.loads(run("list", tiny_bundle_copy, "--json").stdout)
    assert report["bundle"] == [{"file": "vocabularies/pets.safetensors", "classes": 2, "seen": 1}]
    assert "vocabularies/pets.safetensors" in run("list", tiny_bundle_copy).stdout


def test_show(run: Run, pets: Path) -> None:
    plain = run("show", pets).stdout
    assert "red fox" in plain
    assert "ebseg-tiny" in plain
    report = json.loads(run("show", pets, "--json").stdout)
    assert report["classes"] == [
        {"name": "cat", "synonyms": [], "seen": True},
        {"name": "red fox", "synonyms": [], "seen": False},
    ]
    failed(run("show", "nothing"), "'nothing': neither a file nor a benchmark")


def test_shown_classes_can_be_built_again(run: Run, tiny_bundle: Path) -> None:
    shown = json.loads(run("show", "ade20k-150", "--json").stdout)["classes"]
    Path("mine.json").write_text(json.dumps(shown))
    run("build", tiny_bundle, "--file", "mine.json", "-o", "mine.safetensors")
    run("build", tiny_bundle, "--dataset", "ade20k-150", "-o", "theirs.safetensors")
    mine, theirs = Vocabulary.load("mine.safetensors"), Vocabulary.load("theirs.safetensors")
    assert mine.names == theirs.names
    assert mine.seen.tolist() == theirs.seen.tolist()
