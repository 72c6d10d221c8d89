"""Published suites, opened and downloaded by the hub's real client from a stand-in on loopback."""

import errno
import hashlib
import json
import os
import random
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

import lmdynamics as lmd
from lmdynamics import downloads
from lmdynamics.errors import UserError
from lmdynamics.hub import client
from lmdynamics.hub.audit import audit
from lmdynamics.hub.checkpoints import CONFIG, TOKENIZER, known_suites, pinned_commits, read_address
from lmdynamics.hub.suites import SuiteCheckpoint
from lmdynamics.measurements.losses import HeldOutLoss
from tests.conftest import refused
from tests.hub import suites
from tests.hub.server import Hub, spoilt
from tests.test_project import ROOT

PYTHIA = "hf://EleutherAI/pythia-14m"
CONTENT = "^GET (?!.*/resolve/).*safetensors"  # of weights, on the CDN
WEIGHTS = ("safetensors", ".bin", ".h5")


@pytest.fixture
def pauses(monkeypatch, naps) -> list[float]:
    """Seconds that would have been waited between attempts."""
    seconds = []
    monkeypatch.setattr(downloads, "sleep", seconds.append)
    return seconds


def weights_asked(hub: Hub) -> list[str]:
    return [path for path in hub.downloads if path.endswith(WEIGHTS)]


def test_opening_lists_and_downloads_nothing(hub, home):
    suites.pythia(hub)
    run = lmd.open_run(PYTHIA)
    assert run.steps == [0, 1, 2, 512, 1000, 143_000]
    assert run.objective == "clm"
    assert run.name == "EleutherAI/pythia-14m"
    assert run.tokens[512] == 512 * 2_097_152
    assert run.recipe is None
    assert len(run.log) == 0
    assert hub.downloads == []
    with pytest.raises(
        UserError, match=r"at step 512 \(.*`lmdynamics fetch \"hf://EleutherAI/pythia-14m\?steps=512\"`"
    ):
        run[512].model()
    with pytest.raises(UserError, match="no checkpoint at step 3; the nearest are 1, 2, 512|0, 1, 2"):
        run[3]
    with pytest.raises(UserError, match="no optimizer state"):
        run[512].optimizer_state()
    assert hub.downloads == []


def test_commits_are_pinned(hub, home):
    repository = suites.pythia(hub)
    before = lmd.open_run(PYTHIA).pins
    repository.move("step512", repository.branches["step1"])
    assert lmd.open_run(PYTHIA).pins == before
    requests = len(hub.requests)
    assert lmd.open_run(PYTHIA).steps == list(before)
    assert len(hub.requests) == requests  # nor is anybody asked
    pinned = pinned_commits(f"{PYTHIA}?steps=512")
    assert dict(pinned) == {step: pin.commit for step, pin in before.items()}
    moved = lmd.open_run(f"{PYTHIA}?refresh=yes").pins
    assert pinned_commits(PYTHIA) != pinned  # so that a batch's items are run again
    assert pinned_commits("hf://EleutherAI/pythia-70m") == []
    assert moved[512].commit == moved[1].commit != before[512].commit


def test_only_what_a_model_needs_is_downloaded(hub, home):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?steps=log:3").fetch()
    assert run.steps == [0, 512, 143_000]
    names = {Path(path).name for path in hub.downloads}
    assert "model.safetensors" in names
    assert names <= {"model.safetensors", *CONFIG, *TOKENIZER}
    assert len(weights_asked(hub)) == 3
    requests = len(hub.requests)
    model = run[512].model("eager")
    assert type(model).__name__ == "GPTNeoXForCausalLM"
    assert run[512].tokenizer("the cat")["input_ids"]
    assert run[512].content_hash == hashlib.sha256((run[512].folder / "model.safetensors").read_bytes()).hexdigest()
    assert run.cost() == "EleutherAI/pythia-14m: 3 of 3 checkpoints on this machine"
    assert len(hub.requests) == requests


def test_what_is_here_is_shown_and_verified(hub, home, call):
    suites.pythia(hub)
    address = f"{PYTHIA}?steps=0,512"
    run = lmd.open_run(f"{PYTHIA}?steps=512").fetch()
    description = json.loads(call("runs", "show", address)[1])
    assert [(row["step"], row["here"]) for row in description["checkpoints"]] == [(0, False), (512, True)]
    assert description["checkpoints"][1]["commit"] == run.pins[512].commit
    assert call("runs", "verify", address)[:2] == (
        0,
        "EleutherAI/pythia-14m: 5 files are intact; 1 of 2 checkpoints are on this machine\n",
    )
    assert "5 files in 1 checkpoints are intact" in call("runs", "verify", f"{PYTHIA}?steps=512")[1]
    row = next(line for line in call("runs", "list")[1].splitlines() if PYTHIA in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [PYTHIA, "6", "143,000", "1"]
    assert refused(call("runs", "show", "EleutherAI/pythia-14m"), "did you mean 'hf://EleutherAI/pythia-14m'?")
    weights = (run[512].folder / "model.safetensors").resolve()
    weights.write_bytes(spoilt(weights.read_bytes()))
    assert refused(call("runs", "verify", address), "is not the file that EleutherAI/pythia-14m lists for step 512")


def test_only_the_last_few_stay(hub, home):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?download=yes&keep=2")
    losses = lmd.trace(run, HeldOutLoss(rows(run)), progress=False)
    assert losses["step"].to_list() == run.steps
    assert sorted(set(run.steps) - set(run.missing())) == [1000, 143_000]
    assert len(weights_asked(hub)) == 6
    lmd.trace(run, HeldOutLoss(rows(run)), progress=False)  # kept by content, which is known without a download
    assert len(weights_asked(hub)) == 6
    with pytest.raises(UserError, match="keeps only the last 2"):
        run.fetch()


def rows(run):
    """Rows of text for a run's own tokenizer."""
    from lmdynamics.corpora.tokens import TokenRows

    return TokenRows.from_rows(run[run.steps[0]].tokenizer(list(suites.SENTENCES))["input_ids"])


def test_one_repository_for_each_checkpoint(hub, home):
    suites.multiberts(hub)
    run = lmd.open_run("hf://google/multiberts-seed_0-step_*?download=yes")
    assert run.steps == [0, 20_000, 40_000, 2_000_000]
    assert run.objective == "mlm"
    assert type(run[20_000].model()).__name__ == "BertForMaskedLM"
    assert "[MASK]" in run[20_000].tokenizer.get_vocab()
    assert {Path(path).name for path in weights_asked(hub)} == {"pytorch_model.bin"}


def test_a_trajectory_that_is_alone_has_no_name(hub, home):
    suites.sas(hub)
    address = "hf://angie-chen55/bert-base-seed0-ckpt-*"
    run = lmd.open_run(address)
    assert (f"hf://{run.name}", len(run)) == (address, 4)
    assert list(known_suites()) == [address]
    assert [f"hf://{each.name}" for each in audit(address, progress=False)] == [address]


def test_several_trajectories_in_one_repository(hub, home):
    suites.olmo2(hub)
    main = lmd.open_run("hf://allenai/OLMo-2-0425-1B")
    assert main.steps == [0, 10_000, 20_000]
    assert main.tokens[10_000] == 21_000_000_000
    ingredient = lmd.open_run("hf://allenai/OLMo-2-0425-1B#stage2-ingredient1?download=yes")
    assert ingredient.steps == [1000]
    assert type(ingredient[1000].model()).__name__ == "Olmo2ForCausalLM"  # in shards


def test_tags_and_ones_own_names(hub, home):
    suites.crfm(hub)
    assert lmd.open_run("hf://stanford-crfm/alias-gpt2-small-x21").steps == [10, 100, 1000, 20_000, 400_000]
    published(hub, "after-3-epochs", "after-7-epochs")
    with pytest.raises(UserError, match="nothing is named like a checkpoint"):
        lmd.open_run("hf://me/mine")
    epochs = r"after-(?P<step>\d+)-epochs"
    assert lmd.open_run("hf://me/mine?steps=3", revisions=epochs).steps == [3]
    assert lmd.open_run("hf://me/mine").steps == [3, 7]  # it is known by now
    assert lmd.open_run("hf://me/mine").rule.revision == epochs
    assert lmd.open_run("hf://me/mine", revisions=r"after-(?P<step>3)-epochs").steps == [3]


def test_a_suite_goes_to_other_processes(hub, home):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?steps=0,512&download=yes")
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        frame = lmd.trace(run, HeldOutLoss(rows(run)), executor=processes, progress=False)
    assert frame["step"].to_list() == [0, 512]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://pythia", "is not the address of a suite"),
        (f"{PYTHIA}?step=3", "no option 'step'; did you mean 'steps'"),
        (f"{PYTHIA}?keep=x", "keep=x is not a number"),
        (f"{PYTHIA}?download=maybe", "download=maybe is neither yes nor no"),
        (f"{PYTHIA}?download=yes#stage2", "neither yes nor no; #PART comes before the options"),
        (f"{PYTHIA}#stage2", "no trajectory #stage2; it has one without a name"),
        ("hf://EleutherAI/pythia-15m", "no such repository, or it is private"),
        ("hf://me/mine", r"named like a checkpoint \(after-5\); set --revisions"),
        ("hf://google/multiberts-seed_9-step_*", "no repository on the hub matches google/multiberts-seed_9-step_"),
    ],
)
def test_what_is_mistyped_says_what_there_is_and_leaves_nothing(hub, home, address, words):
    repository = suites.pythia(hub)
    hub.repository("me/mine").commit(dict(repository.branches["step0"].files), branch="after-5")
    with pytest.raises(UserError, match=words):
        lmd.open_run(address)
    assert not list(home.glob("suites/*"))


def test_a_step_that_is_not_there_is_refused(hub, home):
    suites.pythia(hub)
    with pytest.raises(UserError, match="no step 7"):
        lmd.open_run(f"{PYTHIA}?steps=7")


def test_options_are_for_suites(tiny_run):
    with pytest.raises(UserError, match="only for published suites"):
        lmd.open_run(tiny_run.folder, steps="log:3")
    assert read_address(f"{PYTHIA}#x?steps=log:3&keep=2").keep == 2


def test_a_gated_suite_says_what_to_do(hub, home, monkeypatch):
    repository = suites.pythia(hub)
    repository.gated, repository.readers = True, {"ann"}
    hub.tokens |= {"of-ann": "ann", "of-bob": "bob"}
    run = lmd.open_run(PYTHIA)
    for token in ("", "of-bob"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match="is gated: accept its terms"):
            run.fetch()
    monkeypatch.setenv("HF_TOKEN", "of-nobody")
    with pytest.raises(UserError, match="does not accept the token"):
        run.fetch()
    monkeypatch.setenv("HF_TOKEN", "of-ann")
    assert "6 of 6 checkpoints" in run.fetch().cost()
    assert {request.token for request in hub.requests_matching(CONTENT)} == {None}  # the token stays with the hub


def test_nothing_is_thrown_away_that_may_not_come_again(hub, home):
    suites.pythia(hub)
    lmd.open_run(f"{PYTHIA}?steps=0,1,2&keep=3").fetch()
    run = lmd.open_run(f"{PYTHIA}?steps=0,1,2&keep=1")
    for step in run.steps:
        run[step].model()
    assert run.missing() == {}


def test_keep_does_not_throw_away_what_was_fetched_for_good(hub, home):
    suites.pythia(hub)
    lmd.open_run(f"{PYTHIA}?steps=0").fetch()
    assert lmd.open_run(f"{PYTHIA}?steps=1&download=yes&keep=1")[1].model()
    lmd.open_run(f"{PYTHIA}?steps=1").fetch()  # here already, and from now on for good
    run = lmd.open_run(f"{PYTHIA}?download=yes&keep=1")
    for step in run.steps:
        run[step].model()
    assert sorted(set(run.steps) - set(run.missing())) == [0, 1, 143_000]


def test_text_of_ones_own_is_named(hub, home, tmp_path):
    suites.pythia(hub)
    line = "1\tcats\t_\t_\t_\t_\t0\troot\t_\t_\n\n"
    (tmp_path / "own.conllu").write_text(line * 3)
    run = lmd.open_run(f"{PYTHIA}?steps=0&download=yes")
    assert len(run.held_out(str(tmp_path / "own.conllu"))) == 3
    with pytest.raises(UserError, match="no treebank 'own'"):
        run.held_out("own")


def test_the_documented_example_of_a_suite_runs(hub, home, tmp_path, capsys):
    suites.pythia(hub)
    (tmp_path / "own.conllu").write_text("1\tcats\t_\t_\t_\t_\t0\troot\t_\t_\n\n" * 3)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "checkpoints.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "hf://" in block]
    code = block.replace('"ewt"', repr(str(tmp_path / "own.conllu"))).replace("lmd.trace(", "made = lmd.trace(")
    exec(code, scope := {})
    assert "0 of 6 checkpoints on this machine; to download: " in capsys.readouterr().out
    assert scope["made"]["step"].to_list() == [0, 1, 2, 512, 1000, 143_000]
    assert {"loss", "tokens", "stderr"} < set(scope["made"].columns)


def test_nobody_agrees(hub, home, call):
    suites.pythia(hub)
    with pytest.raises(UserError, match="nothing was downloaded"):
        lmd.open_run(PYTHIA).fetch(confirm=lambda cost: "kB" not in cost)
    assert refused(call("fetch", PYTHIA), "no terminal to confirm the download", "--yes")
    assert hub.downloads == []
    status, out, _ = call("fetch", f"{PYTHIA}?steps=0,512", "--yes")
    assert status == 0
    assert "steps 0, 512\n" in out
    assert "0 of 2 checkpoints on this machine; to download: " in out
    assert "2 of 2 checkpoints on this machine\n" in out


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_waited_for_and_reported(hub, home, pauses, capsys, status):
    suites.pythia(hub)
    hub.fail(status, match="/refs", times=2, retry_after=3)
    hub.fail(status, match="/cdn|/resolve/.*safetensors", times=2)
    run = lmd.open_run(f"{PYTHIA}?steps=512").fetch()
    assert run.missing() == {}
    messages = capsys.readouterr().err
    assert f"the hub answered {status}; trying again in 3 s (1 of 4)" in messages
    assert 3 in pauses


def test_without_a_network_it_is_reported_what_is_here(hub, home, pauses, monkeypatch):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?steps=0,512").fetch()
    hub.stop()
    assert run[512].model() is not None
    assert lmd.open_run(f"{PYTHIA}?steps=0,512").missing() == {}
    with pytest.raises(UserError, match=r"cannot be reached .*; on this machine are the steps 0, 512"):
        lmd.open_run(PYTHIA)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="is not asked while HF_HUB_OFFLINE is set; on this machine are the steps 0, 5"):
        lmd.open_run(PYTHIA)


def test_other_content_than_was_listed_is_thrown_away(hub, home, pauses, capsys):
    suites.pythia(hub)
    hub.alter(spoilt, match=CONTENT, times=1)
    run = lmd.open_run(f"{PYTHIA}?steps=512").fetch()
    assert "differs from its listing" in capsys.readouterr().err
    assert client.RemoteFile.matches(run.pins[512].weights[0], run[512].folder / "model.safetensors")


def test_a_download_cut_at_random_resumes_and_ends_whole(hub, home, pauses):
    """Twenty cuts; what had come is not asked for again."""
    suites.pythia(hub)
    run = lmd.open_run(PYTHIA)
    size = run.pins[512].weights[0].bytes
    chance = random.Random(0)
    for _ in range(20):
        hub.cut(chance.randrange(size // 8, size // 2), match=CONTENT)
    run.fetch()
    for pin in run.pins.values():
        for file in pin.needed:
            assert file.matches(pin.folder / file.path)
    requests = hub.requests_matching(CONTENT)
    assert len([request for request in requests if request.status == 206]) >= 15
    assert sum(request.sent for request in requests) == 6 * size


def test_a_later_call_resumes_within_the_file(hub, home, pauses):
    """The client keeps nothing of a file it has given up; a checkpoint may have many gigabytes."""
    suites.pythia(hub)
    pin = lmd.open_run(f"{PYTHIA}?steps=512").pins[512]
    (weights,) = pin.weights
    hub.cut(weights.bytes // 2, match=CONTENT)
    hub.fail(503, match=CONTENT, times=downloads.ATTEMPTS)
    with pytest.raises(
        UserError, match="the hub answered 503; received data is kept, run the same command again to resume"
    ):
        client.download(pin.repository, pin.commit, weights, lambda size: None)
    assert not (pin.folder / weights.path).exists()
    downloaded = []
    assert weights.matches(client.download(pin.repository, pin.commit, weights, downloaded.append))
    first, *_, last = hub.requests_matching(CONTENT)
    assert (first.status, last.status, last.range) == (200, 206, f"bytes={weights.bytes // 2}-")
    assert sum(downloaded) == weights.bytes  # a bar is whole at the end, with what was here before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device.* free some space"),
        (errno.EROFS, "set HF_HOME to a folder you can write to"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(hub, home, monkeypatch, number, words):
    def full(*_):
        raise OSError(number, os.strerror(number))

    suites.pythia(hub)
    monkeypatch.setattr(downloads, "_receive", full)
    with pytest.raises(UserError, match=f"could not save EleutherAI/pythia-14m config.json in .*: .*{words}"):
        lmd.open_run(f"{PYTHIA}?steps=512").fetch()


def test_what_an_earlier_call_has_left_is_not_trusted(hub, home, capsys):
    suites.pythia(hub)
    pin = lmd.open_run(f"{PYTHIA}?steps=512").pins[512]
    (weights,) = pin.weights
    part = pin.folder.parents[1] / "blobs" / f"{weights.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 700)
    assert weights.matches(client.download(pin.repository, pin.commit, weights, lambda size: None))
    assert "differs from its listing; it was deleted" in capsys.readouterr().err
    assert not part.exists()
    part.write_bytes(b"x" * (weights.bytes + 1))
    (pin.folder / weights.path).resolve().write_bytes(b"x" * weights.bytes)
    assert weights.matches(client.download(pin.repository, pin.commit, weights, lambda size: None))
    assert capsys.readouterr().err == ""


def test_a_listing_with_a_hash_that_is_a_path_writes_nothing_there(hub, home):
    suites.pythia(hub)
    pin = lmd.open_run(f"{PYTHIA}?steps=512").pins[512]
    (weights,) = pin.weights
    false = replace(weights, sha256="../../../../stolen")
    with pytest.raises(UserError, match="should have sha256"):
        client.download(pin.repository, pin.commit, false, lambda size: None)
    assert not list(home.parent.rglob("*stolen*"))


def test_a_download_that_is_killed_resumes(hub, home, monkeypatch):
    suites.pythia(hub)
    run, stopped = lmd.open_run(PYTHIA), []

    def stop() -> None:
        stopped.append(len(hub.downloads))
        raise KeyboardInterrupt

    real = client.download
    monkeypatch.setattr(client, "download", lambda *a: stop() if len(hub.downloads) > 4 and not stopped else real(*a))
    with pytest.raises(KeyboardInterrupt):
        run.fetch()
    assert 0 < len(run.missing()) < 6
    assert lmd.open_run(PYTHIA).fetch().missing() == {}
    assert len(hub.downloads) == len(set(hub.downloads))


def as_step(repository) -> None:
    repository.branches["step0"] = repository.branches["main"]


def test_a_pickle_that_would_write_is_refused(hub, home, tmp_path):
    marker = tmp_path / "written"
    as_step(suites.unpickling_writes(hub, marker))
    run = lmd.open_run("hf://someone/pickle?download=yes")
    with pytest.raises(UserError, match="could run code"):
        run[0].model()
    assert not marker.exists()


def test_a_model_that_asks_for_its_own_code_is_refused(hub, home, tmp_path):
    marker = tmp_path / "written"
    as_step(suites.importing_writes(hub, marker))
    run = replace(lmd.open_run("hf://someone/remote-code?download=yes"))
    with pytest.raises(UserError, match=r"code of its own"):
        SuiteCheckpoint(**{**vars(run[0]), "objective": "clm"}).model()
    with pytest.raises(UserError, match=r"code of its own"):
        run[0].tokenizer  # noqa: B018
    assert not marker.exists()
    assert not [path for path in hub.downloads if path.endswith(".py")]


def test_names_that_lead_out_of_the_cache_are_never_asked_for(hub, home, tmp_path):
    suites.pythia(hub)
    evil = {"path": "../../evil.py", "type": "file", "size": 3, "oid": "0" * 40}
    shard = {"path": "../model-00001-of-00001.safetensors", "type": "file", "size": 3, "oid": "0" * 40}
    hub.edit(lambda entries: [*entries, evil, shard], match="/tree/", times=None)
    before = {path for path in tmp_path.parent.rglob("*") if "evil" in path.name}
    run = lmd.open_run(f"{PYTHIA}?steps=512").fetch()
    assert run[512].model() is not None
    assert not [request for request in hub.requests if "evil" in request.target or "%2E%2E" in request.target]
    assert {path for path in tmp_path.parent.rglob("*") if "evil" in path.name} == before


def test_one_file_of_weights_rather_than_the_same_in_shards(hub, home):
    repository = hub.repository("me/both")
    names = ("model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    repository.commit({name: name.encode() for name in (*names, "pytorch_model.bin")}, branch="step1")
    repository.commit({name: name.encode() for name in names[1:]}, branch="step2")
    pins = lmd.open_run("hf://me/both").pins
    assert [file.path for file in pins[1].weights] == ["model.safetensors"]
    assert [file.path for file in pins[2].weights] == list(names[1:])


def published(hub: Hub, *branches: str, name: str = "me/mine", main: str | None = None):
    """A repository with a small checkpoint on each of some branches."""
    repository = hub.repository(name)
    for number, branch in enumerate(branches):
        repository.commit({"config.json": b"{}", "model.safetensors": b"%d" % number}, branch=branch)
    if main:
        repository.move("main", repository.branches[main])
    return repository


def test_names_are_read_whole_and_trajectories_are_kept_apart(hub, home, capsys):
    big = [f"big-step-{step}" for step in (1000, 2000)]
    small = [f"small-step-{step}" for step in (1000, 2000, 3000, 4000)]
    published(hub, *big, *small)
    with pytest.raises(UserError, match=r"holds several trajectories: #big, #small; name one, as in hf://me/mine#big"):
        lmd.open_run("hf://me/mine")
    assert not list(home.glob("suites/*"))
    run = lmd.open_run("hf://me/mine#small")
    assert (run.name, run.steps) == ("me/mine#small", [1000, 2000, 3000, 4000])
    assert {pin.revision for pin in run.pins.values()} == set(small)
    assert "not used: #big (big-step-1000, big-step-2000)" in capsys.readouterr().err


def test_another_trajectory_beside_the_plain_one_is_left_out_and_named_once(hub, home, capsys):
    published(hub, "step1000", "step2000", "step3000", "step3000-rlhf", "old", "main")
    run = lmd.open_run("hf://me/mine")
    assert run.steps == [1000, 2000, 3000]
    assert run.pins[3000].revision == "step3000"
    message = "me/mine: not used: #rlhf (step3000-rlhf); names without a step (old)"
    assert capsys.readouterr().err.splitlines() == [f"lmdynamics: {message}"]
    lmd.open_run("hf://me/mine")
    assert capsys.readouterr().err == ""
    assert lmd.open_run("hf://me/mine#rlhf").pins[3000].revision == "step3000-rlhf"


def test_stages_are_asked_for_in_the_order_of_their_numbers(hub, home):
    published(hub, "phase10-step1000", "phase2-step1000", "phase2-step2000")
    with pytest.raises(UserError, match="several trajectories: #phase2, #phase10; name one"):
        lmd.open_run("hf://me/mine")


def test_phases_that_count_anew_come_in_order_and_those_left_out_are_named(hub, home, capsys):
    published(hub, "decay100", "ext1000", "step1000", "step2000")
    assert lmd.open_run("hf://me/mine").steps == [1000, 2000]
    assert "me/mine: not used: #ext (ext1000); #decay (decay100)" in capsys.readouterr().err
    joined = lmd.open_run("hf://me/mine#step+ext")
    assert [pin.revision for pin in joined.pins.values()] == ["step1000", "step2000", "ext1000"]
    assert joined.steps == [1000, 2000, 3000]
    messages = capsys.readouterr().err
    assert "renumbered: #ext, to continue from step 2,000" in messages
    assert "not used: #decay (decay100)" in messages
    assert lmd.open_run("hf://me/mine#step+ext+decay").steps == [1000, 2000, 3000, 3100]
    published(hub, "stage1-step500", "stage1-step1000", "stage2-step1500", name="me/on")  # goes on counting
    assert lmd.open_run("hf://me/on#stage1+stage2").steps == [500, 1000, 1500]
    with pytest.raises(UserError, match="no trajectory #stage3; it has #stage1, #stage2"):
        lmd.open_run("hf://me/on#stage1+stage3")


def test_two_names_for_one_step_are_refused_unless_they_are_one_checkpoint(hub, home):
    repository = published(hub, "step-100", "checkpoint-100", "step-200")
    with pytest.raises(UserError, match=r"two checkpoints of step 100: step-100 and checkpoint-100; .*revisions="):
        lmd.open_run("hf://me/mine")
    with pytest.raises(UserError, match="two checkpoints of step 100"):
        audit("hf://me/mine", progress=False)
    assert lmd.open_run("hf://me/mine", revisions=r"step\-(?P<step>[0-9]+)").steps == [100, 200]
    repository.move("checkpoint-100", repository.branches["step-100"])
    assert lmd.open_run("hf://me/mine?refresh=yes").steps == [100, 200]


def test_what_an_earlier_version_put_into_one_is_listed_anew(hub, home):
    published(hub, "step1000", "step2000", "step3000-rlhf")
    lmd.open_run("hf://me/mine")
    (file,) = home.glob("suites/*/suite.json")
    suite = json.loads(file.read_text())
    (last,) = [{**suite["checkpoints"][-1], "step": 3000, "revision": "step3000-rlhf"}]
    old = {name: value for name, value in suite.items() if name not in ("main", "notes")}
    file.write_text(json.dumps({**old, "checkpoints": [*suite["checkpoints"], last]}))
    assert lmd.open_run("hf://me/mine").steps == [1000, 2000]


def without_tokenizers(repository, *but: str) -> None:
    """Take the tokenizer from every branch but some."""
    for branch, commit in list(repository.branches.items()):
        if branch not in but:
            files = {path: file for path, file in commit.files.items() if path not in TOKENIZER}
            repository.commit(files, branch=branch)


def test_a_tokenizer_on_the_main_branch_only_is_used_and_reported(hub, home, capsys):
    repository = suites.pythia(hub, steps=[0, 512])
    without_tokenizers(repository, "main")
    run = lmd.open_run(PYTHIA)
    assert run[0].tokenizer("the cat")["input_ids"] == run[512].tokenizer("the cat")["input_ids"]
    message = "no checkpoint has a tokenizer; that of the branch main is used for all of them"
    assert capsys.readouterr().err.count(message) == 1
    requests = len(hub.requests)
    assert lmd.open_run(PYTHIA)[512].tokenizer("the cat")["input_ids"]
    assert len(hub.requests) == requests  # pinned as the checkpoints are: main may move, or be out of reach


def test_a_tokenizer_of_another_checkpoint_is_used_and_reported(hub, home, capsys):
    repository = suites.pythia(hub, steps=[0, 1, 512])
    without_tokenizers(repository, "step512", "main")
    assert lmd.open_run(PYTHIA)[0].tokenizer("the cat")["input_ids"]
    assert "have no tokenizer of their own; that of step 512 is used for them" in capsys.readouterr().err


def test_a_repository_without_a_main_branch_opens(hub, home):
    repository = suites.pythia(hub, steps=[0, 512])
    del repository.branches["main"]
    assert lmd.open_run(PYTHIA)[512].tokenizer("the cat")["input_ids"]
    without_tokenizers(repository)
    with pytest.raises(UserError, match="has no tokenizer: .*there is no main branch to take it from"):
        lmd.open_run(f"{PYTHIA}?refresh=yes")[512].tokenizer  # noqa: B018
    assert [fault.kind for fault in audit(f"{PYTHIA}?steps=0,512", progress=False)[0].faults] == ["missing tokenizer"]


def test_repositories_that_are_checkpoints_without_a_main_branch(hub, home):
    first, second, *_ = suites.multiberts(hub)
    first.branches["trunk"] = first.branches.pop("main")
    address = "hf://google/multiberts-seed_0-step_*"
    assert lmd.open_run(address).steps == [0, 20_000, 40_000, 2_000_000]
    second.branches["other"] = second.branches.pop("main")
    second.branches["another"] = first.branches["trunk"]
    with pytest.raises(UserError, match="step_20k has no main branch but another, other, so its"):
        lmd.open_run(f"{address}?refresh=yes")


def test_shards_of_deepspeed_are_named_with_the_way_out(hub, home):
    repository = hub.repository("me/sharded")
    shards = ("global_step500/mp_rank_00_model_states.pt", "zero_to_fp32.py", "latest")
    files = {**dict.fromkeys(shards, b"not opened"), **suites.config("pythia")}
    repository.commit(files, branch="checkpoint-500")
    with pytest.raises(
        UserError, match=r"at step 500 holds DeepSpeed shards .*zero_to_fp32.py . OUT -t global_step500"
    ):
        lmd.open_run("hf://me/sharded?download=yes")[500].content_hash  # noqa: B018
