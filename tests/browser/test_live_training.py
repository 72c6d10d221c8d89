"""Live training as a reader meets it: start, see the loss move, pause, resume, stop; a page drawn anew; a restart."""

import os
import re
from pathlib import Path

import pytest

from lmdynamics.training import layout
from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, jupyter_lab, notebook_page
from tests.browser.legible import cut_off, inspect_charts
from tests.conftest import TINY

OUT = Path(__file__).parent / "out"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

LIVE = f"""\
from lmdynamics.explorers.training import Watched, train_live
from lmdynamics.measurements.losses import HeldOutLoss
held_out = Watched(lambda run: HeldOutLoss(run.held_out()), "loss")
explorer = train_live("grammar-mlm", overrides={ {**TINY, "steps": 100_000} }, name="live",
                      measurements={{"held-out loss": held_out}})
explorer.show()
"""

WATCHED = """\
import torch
import lmdynamics as lmd
from lmdynamics.measurements.losses import HeldOutLoss
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments
grammar = lmd.Grammar("small")
tokenizer, rows = grammar.tokenizer(), [{"input_ids": row.tolist()} for row in grammar.blocks(2_000, seed=0)]
size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size))
watch = lmd.Watch([HeldOutLoss(grammar.blocks(50, seed=2))], "watched", max_share=0.5)
lmd.show_watch(watch)
options = {"use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 20, "disable_tqdm": True}
trainer = Trainer(model, TrainingArguments("out", max_steps=STEPS, **options), train_dataset=rows, callbacks=[watch],
                  data_collator=DataCollatorForLanguageModeling(tokenizer), processing_class=tokenizer)
result = trainer.train()
"""

STEP = r"at step ([\d,]+) of 100,000"
SAYS = "([words, least]) => { const found = document.body.innerText.match(new RegExp(words + ' at step ([\\\\d,]+)'));"
SAYS += " return found && Number(found[1].replaceAll(',', '')) > least }"


def press(page, name: str) -> None:
    page.locator(f"button.jupyter-button:has-text('{name}')").first.click()


def wait_until(page, state: str, beyond: int = 0) -> int:
    """Wait until the line says that state at a later step, which is returned."""
    page.wait_for_function(SAYS, arg=[state, beyond], timeout=60_000, polling=100)
    text = page.locator(".widget-html-content").filter(has_text=re.compile(STEP)).first.inner_text()
    return int(re.search(STEP, text)[1].replace(",", ""))


def drawn_steps(page) -> int:
    """How many single steps the loss panel shows."""
    return page.locator(".vega-embed svg .mark-symbol path").count()


def test_start_pause_resume_and_stop(tmp_path):
    root, scratch, home = (tmp_path / name for name in ("notebooks", "jupyter", "home"))
    for folder in (root, scratch, home):
        folder.mkdir()
    write_notebook(root / "live.ipynb", LIVE, "1 + 1", parameters=None)
    environment = {"LMDYNAMICS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with jupyter_lab(root, scratch, **environment) as address, notebook_page() as notebook:
        notebook.open(address, "live.ipynb")
        notebook.run_all()
        page = notebook.page
        page.locator(".vega-embed svg").get_by_text("not begun").wait_for(timeout=30_000)
        assert drawn_steps(page) == 0
        press(page, "start")
        first = wait_until(page, "training")
        later = wait_until(page, "training", first + 50)  # two updates, at least
        assert later > first
        assert drawn_steps(page) > 30
        assert cut_off(inspect_charts(page)) == []
        page.locator(".vega-embed svg").get_by_text("training at step").wait_for(timeout=10_000)
        notebook.run_all()  # the kernel is free, and the cell attaches to what is under way
        wait_until(page, "training", later)
        press(page, "pause")
        paused = wait_until(page, "paused", later)
        press(page, "resume")
        wait_until(page, "training", paused)
        notebook.screenshots(OUT, "live-training")
        assert cut_off(inspect_charts(page)) == []
        press(page, "stop")
        stopped = wait_until(page, "stopped", paused)
        assert notebook.errors() == []
        assert notebook.console == []
        assert notebook.outside == []
        run = home / "runs" / "live"
        assert max(layout.step_folders(run / "resume") | layout.step_folders(run / "checkpoints")) == stopped


def test_a_watched_trainer_is_drawn_while_its_cell_runs(tmp_path):
    root, scratch, home = (tmp_path / name for name in ("notebooks", "jupyter", "home"))
    for folder in (root, scratch, home):
        folder.mkdir()
    write_notebook(root / "watched.ipynb", WATCHED.replace("STEPS", "1500"), "print('trained', result.global_step)")
    environment = {"LMDYNAMICS_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with jupyter_lab(root, scratch, **environment) as address, notebook_page() as notebook:
        notebook.open(address, "watched.ipynb")
        page, says = notebook.page, re.compile(r"training at step ([\d,]+) of 1,500")
        notebook.press_run_all()
        line = page.locator(".vega-embed svg").get_by_text(says)
        line.first.wait_for(timeout=90_000)
        seen = int(says.search(line.first.text_content())[1].replace(",", ""))
        page.wait_for_function(
            "seen => { const found = document.body.innerText.match(/training at step ([\\d,]+) of 1,500/);"
            " return found && Number(found[1].replaceAll(',', '')) > seen }",
            arg=seen,
            timeout=60_000,
        )
        assert "trained 1500" not in page.inner_text("body")
        page.get_by_text("trained 1500").wait_for(timeout=120_000)
        page.locator(".vega-embed svg").get_by_text("complete at step 1,500 of 1,500").first.wait_for(timeout=10_000)
        assert drawn_steps(page) > 20
        assert cut_off(inspect_charts(page)) == []
        notebook.screenshots(OUT, "watched-training")
        assert notebook.errors() == []
        notebook.reopen_without_kernel("watched.ipynb")
        assert notebook.charts() == 1
        (picture,) = (output["data"] for output in notebook.outputs() if "image/png" in output.get("data", {}))
        assert "while it is trained, over 1,500 steps" in "".join(picture["text/plain"])
        assert notebook.outside == []
