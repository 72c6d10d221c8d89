"""Large corpora on disk: whole or not at all, built once."""

import threading

import numpy as np
import pytest

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.corpora.text import COMPLETE, stored
from lmdynamics.training import batches
from lmdynamics.training.recipes import load_recipe


def building(made: list, text: str = "{}"):
    def build(place):
        made.append(place)
        Blocks.from_rows([[1, 2], [3]]).save(place)
        (place / COMPLETE).write_text(text)

    return build


def test_what_was_built_is_opened_and_what_is_damaged_is_built_again(tmp_path):
    made, place = [], tmp_path / "deep" / "corpus"
    for _ in range(2):
        assert [row.tolist() for row in stored(place, Blocks.load, building(made))] == [[1, 2], [3]]
    assert len(made) == 1
    (place / "ids.npy").write_bytes(b"nothing")
    assert len(stored(place, Blocks.load, building(made))) == 2
    (place / COMPLETE).unlink()  # as if it had been copied by half
    assert len(stored(place, Blocks.load, building(made))) == 2
    assert len(made) == 3
    assert sorted(path.name for path in place.parent.iterdir()) == ["corpus", "corpus.lock"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(place):
        (place / COMPLETE).write_text("{}")
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        stored(tmp_path / "corpus", Blocks.load, fails)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.lock"]


def test_of_two_that_want_it_at_once_one_waits(tmp_path):
    made, found = [], []
    begun = threading.Barrier(4)

    def want():
        begun.wait()
        found.append(len(stored(tmp_path / "corpus", Blocks.load, building(made))))

    wanting = [threading.Thread(target=want) for _ in range(4)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert found == [2] * 4
    assert len(made) == 1


def test_a_long_corpus_of_the_grammar_is_drawn_once_for_all_runs_of_a_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("LMDYNAMICS_HOME", str(tmp_path))
    monkeypatch.setattr(batches, "PART", 100)

    def recipe(n: int, seed: int):
        return load_recipe("grammar-ladder", "smoke", seed, {"corpus.sentences": n, "batch_size": 2})

    batches.open_corpus(recipe(100, 3))
    assert not (tmp_path / "cache").exists()
    first = batches.open_corpus(recipe(300, 3))
    (kept,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())
    written = (kept / "rows" / "ids.npy").stat().st_mtime_ns
    again = batches.open_corpus(recipe(300, 3))
    assert again.train.fingerprint == first.train.fingerprint
    assert (kept / "rows" / "ids.npy").stat().st_mtime_ns == written
    other = batches.open_corpus(recipe(300, 4))
    assert not np.array_equal(other.train.ids, first.train.ids)
