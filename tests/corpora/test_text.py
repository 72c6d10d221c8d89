"""Text to tokenizer to token rows: what is read, what is returned, that it is built once and completely, refusals."""

import errno
import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lmdynamics.corpora import text as text_module
from lmdynamics.corpora.text import COMPLETE, MAX_CHARACTERS, Paragraphs, build_text_corpus, load_or_build, text_files
from lmdynamics.corpora.tokens import TokenRows, train_tokenizer
from lmdynamics.training import batches
from lmdynamics.training.recipes import load_recipe
from tests.conftest import refuses

HEADER = "# Title: A Book\n\n## Author: Nobody\n\n-------\n\n"
BOOK = HEADER + "## Chapter 1\n\nIt _was_ late,\nand dark. \n\n* * *\n\nThe end.\n"
KINDS = ("wordpiece", "bpe")
SMALL = {"wordpiece": 90, "bpe": 300}


def read_texts(path):
    folder, files = text_files(path)
    return [(file.relative_to(folder).as_posix(), "\n".join(Paragraphs((file,)))) for file in files]


def sentences(n):
    nouns, verbs = ("cat", "dog", "naïve child", "old man"), ("sleeps", "doesn't run", "sings, loudly")
    return [f"The {nouns[i % 4]} {verbs[i % 3]} {i}." for i in range(n)]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_text("\n\n".join(sentences(200)), encoding="utf-8")
    (folder / "inner" / "a.md").write_text(BOOK + "\n" + "\n".join(sentences(100)), encoding="utf-8")
    return folder


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def small(kind):
    """Options of a corpus small enough for a test."""
    return {"kind": kind, "vocab_size": SMALL[kind], "block_size": 16, "held_out": 0.1}


refusal = partial(refuses, ".")


class TestReading:
    def test_markdown_loses_header_and_markup_and_paragraphs_become_lines(self, tmp_path):
        (tmp_path / "book.md").write_text(BOOK, encoding="utf-8")
        assert read_texts(tmp_path) == [("book.md", "Chapter 1\nIt was late, and dark.\nThe end.")]

    def test_plain_text_keeps_its_characters(self, tmp_path):
        (tmp_path / "book.txt").write_text("a_b #1\n-------\n*c*", encoding="utf-8")
        assert read_texts(tmp_path / "book.txt") == [("book.txt", "a_b #1 ------- *c*")]

    def test_a_line_of_dashes_far_down_is_no_header(self, tmp_path):
        body = "\n".join(["word"] * 30)
        (tmp_path / "book.md").write_text(f"{body}\n-------\n{body}", encoding="utf-8")
        assert read_texts(tmp_path)[0][1].count("word") == 60

    def test_files_come_in_order_of_name_and_those_about_the_texts_are_passed_over(self, texts):
        for name in ("SOURCE.txt", "README.md", "LICENSE.txt", ".hidden.txt", "notes.pdf", "inner/licence.md"):
            (texts / name).write_text("not text", encoding="utf-8")
        (texts / "Source Code of Life.txt").write_text("passed over: it starts with the word", encoding="utf-8")
        (texts / "sources.txt").write_text("read", encoding="utf-8")
        assert [name for name, _ in read_texts(texts)] == ["b.txt", "inner/a.md", "sources.txt"]

    def test_a_paragraph_without_end_is_cut_at_a_line_end(self, tmp_path):
        (tmp_path / "long.txt").write_text("one two\n" * (MAX_CHARACTERS // 2), encoding="utf-8")
        lines = read_texts(tmp_path)[0][1].split("\n")
        assert len(lines) > 3
        assert all(len(line) <= MAX_CHARACTERS + 10 and line.endswith("one two") for line in lines)
        assert " ".join(lines).split() == ["one", "two"] * (MAX_CHARACTERS // 2)

    def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
        assert read_texts(tmp_path) == [("a.txt", "one two\nthree")]

    def test_bad_texts_are_refused_in_one_line(self, tmp_path):
        assert "does not exist" in refusal(read_texts, tmp_path / "nowhere")
        assert "holds no .txt or .md files" in refusal(read_texts, tmp_path)
        (tmp_path / "bad.txt").write_bytes("Où?".encode("latin-1"))
        assert "bad.txt is not UTF-8" in refusal(read_texts, tmp_path)
        (tmp_path / "bad.txt").write_text(" \n\n", encoding="utf-8")
        assert "bad.txt holds no text" in refusal(read_texts, tmp_path)


class TestTokenizer:
    def test_special_tokens_come_first_and_surround(self, kind):
        tokenizer = train_tokenizer(sentences(50), kind, SMALL[kind], True, 32)
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        ids = tokenizer("The cat sleeps.")["input_ids"]
        assert (ids[0], ids[-1], tokenizer.mask_token_id, tokenizer.model_max_length) == (2, 3, 4, 32)
        assert len(tokenizer) <= SMALL[kind]

    def test_words_stay_apart_when_given_as_words(self, kind):
        tokenizer = train_tokenizer(sentences(50), kind, SMALL[kind], True, 32)
        words = ["The", "naïve", "child", "does", "n't", "zzz", "."]
        encoded = tokenizer(words, is_split_into_words=True)
        ids = encoded.word_ids()
        assert ids[0] is None
        assert ids[-1] is None
        assert sorted(set(ids[1:-1])) == list(range(len(words)))
        assert all(b - a in (0, 1) for a, b in pairwise(ids[1:-1]))
        spaced = "the old man sleeps ."  # running text and words alike
        assert tokenizer(spaced)["input_ids"] == tokenizer(spaced.split(), is_split_into_words=True)["input_ids"]

    def test_byte_level_bpe_knows_everything_and_decodes_it(self):
        tokenizer = train_tokenizer(sentences(50), "bpe", 300, False, 32)
        ids = tokenizer("Größe 漢字 🙂")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Größe 漢字 🙂"

    def test_lowercase_is_an_option(self, kind):
        lower, cased = (train_tokenizer(sentences(50), kind, SMALL[kind], low, 32) for low in (True, False))
        assert lower("THE cat")["input_ids"] == lower("the CAT")["input_ids"]
        assert cased("THE cat")["input_ids"] != cased("the CAT")["input_ids"]

    def test_saved_it_opens_as_it_was(self, kind, tmp_path):
        tokenizer = train_tokenizer(sentences(50), kind, SMALL[kind], True, 32)
        tokenizer.save_pretrained(tmp_path)
        opened = AutoTokenizer.from_pretrained(tmp_path)
        assert opened.get_vocab() == tokenizer.get_vocab()
        words = ["The", "naïve", "child", "##x", "[MASK]"]
        expected, reopened = (t(words, is_split_into_words=True) for t in (tokenizer, opened))
        assert (expected["input_ids"], expected.word_ids()) == (reopened["input_ids"], reopened.word_ids())
        assert opened.model_max_length == 32

    def test_the_same_texts_give_the_same_vocabulary(self, kind):
        """The WordPiece trainer alone would not: it numbers pieces in the order of a hash map."""
        vocabularies = [train_tokenizer(sentences(300), kind, SMALL[kind], True, 32).get_vocab() for _ in range(4)]
        assert vocabularies.count(vocabularies[0]) == 4

    def test_an_iterator_will_do(self, kind):
        of_list, of_iterator = (
            train_tokenizer(x, kind, SMALL[kind], True, 32) for x in (sentences(50), iter(sentences(50)))
        )
        assert of_list.get_vocab() == of_iterator.get_vocab()

    def test_hash_signs_in_a_text_are_not_pieces(self):
        tokenizer = train_tokenizer(sentences(50), "wordpiece", 90, True, 32)
        assert tokenizer.tokenize("a ##a")[1:] == ["[UNK]", "[UNK]", "a"]

    def test_options_that_make_no_sense_are_refused(self):
        assert "known: wordpiece, bpe" in refusal(train_tokenizer, ["a"], "unigram", 100, True, 32)
        assert "needs at least 261" in refusal(train_tokenizer, ["a"], "bpe", 100, True, 32)
        assert "no text" in refusal(train_tokenizer, ["", " "], "wordpiece", 100, True, 32)


class TestPacking:
    @given(st.integers(2, 3000), st.floats(0.001, 0.5))
    def test_held_out_rows_are_the_share_asked_for_in_few_runs(self, count, share):
        held_out = text_module._held_out_rows(count, share)
        expected = min(count - 1, max(1, round(count * share)))
        assert held_out.sum() == expected
        runs = np.flatnonzero(np.diff(np.concatenate([[0], held_out, [0]])) == 1)
        assert len(runs) <= -(-expected // text_module.CHUNK)


class TestBuilding:
    def test_training_and_held_out_rows_are_the_packed_text(self, texts, tmp_path, small):
        tokenizer, train, held_out = build_text_corpus(texts, tmp_path / "made", **small)
        paragraphs = chain.from_iterable(text.split("\n") for _, text in read_texts(texts))
        ids = [i for text in paragraphs for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        rows = [(2, *ids[i : i + 14], 3) for i in range(0, len(ids) - 13, 14)]
        mask = text_module._held_out_rows(len(rows), 0.1)
        assert [tuple(row) for row in train] == [row for row, out in zip(rows, mask, strict=True) if not out]
        assert [tuple(row) for row in held_out] == [row for row, out in zip(rows, mask, strict=True) if out]
        assert set(train.lengths) == set(held_out.lengths) == {16}

    def test_it_is_memory_mapped_and_opened_the_second_time(self, texts, tmp_path, small, monkeypatch):
        _, first, _ = build_text_corpus(texts, tmp_path / "made", **small)
        monkeypatch.setattr(text_module, "_build", lambda *_: pytest.fail("built twice"))
        tokenizer, train, held_out = build_text_corpus(texts, tmp_path / "made", **small)
        assert isinstance(train.ids, np.memmap)
        assert isinstance(held_out.ids, np.memmap)
        assert train.fingerprint == first.fingerprint
        assert tokenizer("The cat")["input_ids"][0] == 2

    def test_small_slabs_and_batches_change_nothing(self, texts, tmp_path, small, monkeypatch):
        _, one, one_out = build_text_corpus(texts, tmp_path / "one", **small)
        monkeypatch.setattr(text_module, "ROWS", 3)
        monkeypatch.setattr(text_module, "BATCH", 7)
        _, other, other_out = build_text_corpus(texts, tmp_path / "other", **small)
        assert (one.fingerprint, one_out.fingerprint) == (other.fingerprint, other_out.fingerprint)

    def test_another_option_or_another_text_is_another_corpus(self, texts, tmp_path, small):
        corpora = tmp_path / "made"
        build_text_corpus(texts, corpora, **small)
        build_text_corpus(texts, corpora, **{**small, "block_size": 8})
        (texts / "b.txt").write_text("\n\n".join(sentences(201)), encoding="utf-8")
        build_text_corpus(texts, corpora, **small)
        assert len(list(corpora.glob("*/corpus.json"))) == 3

    def test_where_the_texts_lie_does_not_matter(self, texts, tmp_path, small):
        build_text_corpus(texts, tmp_path / "made", **small)
        moved = texts.rename(tmp_path / "moved")
        build_text_corpus(moved, tmp_path / "made", **small)
        (description,) = (tmp_path / "made").glob("*/corpus.json")
        assert str(tmp_path) not in description.read_text(encoding="utf-8")

    @pytest.mark.parametrize("damaged", ["train/ids.npy", "held_out/offsets.npy", "tokenizer/tokenizer.json"])
    def test_what_is_damaged_is_built_again(self, texts, tmp_path, small, damaged):
        _, train, _ = build_text_corpus(texts, tmp_path / "made", **small)
        expected = train.fingerprint
        (file,) = (tmp_path / "made").glob(f"*/{damaged}")
        file.write_bytes(file.read_bytes()[:-5])
        assert build_text_corpus(texts, tmp_path / "made", **small)[1].fingerprint == expected

    def test_a_failure_leaves_nothing_and_what_a_killed_process_left_is_cleared(
        self, texts, tmp_path, small, monkeypatch
    ):
        corpora = tmp_path / "made"
        with monkeypatch.context() as patch:
            patch.setattr(text_module, "_rows", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build_text_corpus(texts, corpora, **small)
        assert [path.suffix for path in corpora.iterdir()] == [".lock"]
        leftover = corpora / f".{next(corpora.iterdir()).stem}.half"
        leftover.mkdir()
        (leftover / "stream").write_bytes(b"half")
        assert len(build_text_corpus(texts, corpora, **small)[1]) > 0
        assert not leftover.exists()

    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")]
    )
    def test_a_full_disk_is_one_line(self, texts, tmp_path, small, monkeypatch, error):
        def full(*_):
            raise error

        monkeypatch.setattr(text_module, "write_array", full)
        message = refusal(build_text_corpus, texts, tmp_path / "made", **small)
        assert re.match(r"could not save .*: no space left on (the disk|device)\. .* free some space and run", message)
        assert [path.suffix for path in (tmp_path / "made").iterdir()] == [".lock"]

    def test_bad_texts_and_options_are_refused_and_leave_nothing(self, texts, tmp_path, small):
        corpora = tmp_path / "made"
        assert "are invalid" in refusal(build_text_corpus, texts, corpora, **{**small, "held_out": 0})
        assert "are invalid" in refusal(build_text_corpus, texts, corpora, **{**small, "held_out": 0.6})
        assert "are invalid" in refusal(build_text_corpus, texts, corpora, **{**small, "block_size": 2})
        assert "unknown tokenizer kind" in refusal(build_text_corpus, texts, corpora, **{**small, "kind": "words"})
        assert "only" in refusal(build_text_corpus, texts, corpora, **{**small, "block_size": 50_000})
        (texts / "latin.txt").write_bytes(b"caf\xe9")
        assert "latin.txt is not UTF-8" in refusal(build_text_corpus, texts, corpora, **small)
        assert {path.suffix for path in corpora.iterdir()} == {".lock"}

    def test_two_processes_at_once_build_it_once(self, texts, tmp_path):
        options = {"kind": "wordpiece", "vocab_size": 90, "block_size": 16, "held_out": 0.1}
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            calls = [pool.submit(fingerprints, texts, tmp_path / "made", options) for _ in range(2)]
            one, other = (call.result() for call in calls)
        assert one == other
        (description,) = (tmp_path / "made").glob("*/corpus.json")
        assert json.loads(description.read_text(encoding="utf-8"))["vocab_size"] == 90


def fingerprints(texts, folder, options):
    _, train, held_out = build_text_corpus(texts, folder, **options)
    return train.fingerprint, held_out.fingerprint


class TestRealBooks:
    def test_every_book_is_read_without_its_header_and_markup(self, real_data):
        books = dict(read_texts(real_data / "text" / "classic_books_children"))
        assert len(books) == 67
        assert sum(len(book.split()) for book in books.values()) > 4_400_000
        assert not any("Author:" in book[:200] or set("_*#") & set(book) for book in books.values())

    def test_a_few_books_make_a_corpus(self, real_data, tmp_path, kind):
        folder = real_data / "text" / "classic_books_children" / "Lewis Carroll"
        options = {"kind": kind, "vocab_size": 1000, "block_size": 64}
        tokenizer, train, held_out = build_text_corpus(folder, tmp_path, **options)
        assert len(tokenizer) == 1000
        assert len(held_out) == round(0.01 * (len(train) + len(held_out)))
        assert (np.asarray(train.ids) == tokenizer.unk_token_id).mean() < 0.001
        assert "alice" in tokenizer.decode(train.ids[:20_000])


def building(folders: list, text: str = "{}"):
    def build(folder):
        folders.append(folder)
        TokenRows.from_rows([[1, 2], [3]]).save(folder)
        (folder / COMPLETE).write_text(text)

    return build


def test_what_was_built_is_opened_and_what_is_damaged_is_built_again(tmp_path):
    folders, folder = [], tmp_path / "deep" / "corpus"
    for _ in range(2):
        assert [row.tolist() for row in load_or_build(folder, TokenRows.load, building(folders))] == [[1, 2], [3]]
    assert len(folders) == 1
    (folder / "ids.npy").write_bytes(b"nothing")
    assert len(load_or_build(folder, TokenRows.load, building(folders))) == 2
    (folder / COMPLETE).unlink()  # as if it had been copied by half
    assert len(load_or_build(folder, TokenRows.load, building(folders))) == 2
    assert len(folders) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == ["corpus", "corpus.lock"]


def test_a_long_corpus_of_the_grammar_is_drawn_once_for_all_runs_of_a_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("LMDYNAMICS_HOME", str(tmp_path))
    monkeypatch.setattr(batches, "PART", 100)

    def recipe(n: int, seed: int):
        return load_recipe("grammar-ladder", "smoke", seed, {"corpus.sentences": n, "batch_size": 2})

    batches.open_corpus(recipe(100, 3))
    assert not (tmp_path / "cache").exists()
    first = batches.open_corpus(recipe(300, 3))
    (saved,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())
    modified = (saved / "rows" / "ids.npy").stat().st_mtime_ns
    reopened = batches.open_corpus(recipe(300, 3))
    assert reopened.train.fingerprint == first.train.fingerprint
    assert (saved / "rows" / "ids.npy").stat().st_mtime_ns == modified
    other_seed = batches.open_corpus(recipe(300, 4))
    assert not np.array_equal(other_seed.train.ids, first.train.ids)
