"""The checkpoint that is looked at: a slider with its step and loss, keys and a play button; several kept together."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import anywidget
import ipywidgets as widgets
import traitlets

from lmdynamics.charts.axes import BEFORE_ONE, JUMP

TICK = 350  # milliseconds from one checkpoint to the next while it plays


class Keyboard(anywidget.AnyWidget):
    """Nothing to see: gives the keyboard to the slider in the same box, which a slider cannot be told itself."""

    _esm = """
    export default {
      render({ model, el }) {
        el.style.display = "none";
        const handle = () => el.closest(".lmd-checkpoint")?.querySelector(".noUi-handle");
        model.on("msg:custom", () => handle()?.focus({ preventScroll: true }));
      },
    };
    """

    def take(self) -> None:
        self.send({})


class CheckpointSlider(widgets.HBox):
    """A slider over checkpoints, log-spaced as they are: `step` is the one it stands at.

    Arrow keys, Page Up and Down, Home and End move it; the button plays training from there on. Beside it stands the
    loss at that step (nats per token), where `losses` knows it.
    """

    step = traitlets.Int()

    def __init__(
        self, steps: Sequence[int], step: int | None = None, losses: Mapping[int, float] | None = None, width: int = 520
    ):
        self.slider = widgets.SelectionSlider(
            options=[("", 0)], description="checkpoint", style={"description_width": "80px"},
            layout=widgets.Layout(width=f"{width}px"),
        )  # fmt: skip
        self.play = widgets.Play(interval=TICK, layout=widgets.Layout(width="120px"))
        self.loss, self.keyboard = widgets.Label(), Keyboard()
        widgets.jslink((self.play, "value"), (self.slider, "index"))
        super().__init__([self.slider, self.play, self.loss, self.keyboard], layout=widgets.Layout(flex_flow="wrap"))
        self.add_class("lmd-checkpoint")
        self._offering = False
        self.offer(steps, steps[-1] if step is None else step, losses)
        self.slider.observe(self._moved, names="value")
        self.observe(lambda change: self.go(change["new"]), names="step")

    @property
    def steps(self) -> list[int]:
        return [step for _, step in self.slider.options]

    def offer(self, steps: Sequence[int], step: int, losses: Mapping[int, float] | None = None) -> None:
        """Other checkpoints, and where to stand among them: the nearest to `step`."""
        self._losses = dict(losses or {})
        wanted = nearest(steps, step)
        options = [(f"{each:,}", each) for each in steps]
        self._offering = True  # new options put the slider at their first, which nobody asked for
        try:
            if options != list(self.slider.options):
                self.play.max = len(steps) - 1
                self.slider.options = options
            self.slider.value = wanted
        finally:
            self._offering = False
        self._moved()

    def go(self, step: float) -> None:
        """Go to the checkpoint nearest to a step, as seen on a logarithmic axis."""
        self.slider.value = nearest(self.steps, step)

    @property
    def clicks(self) -> dict[str, Callable[[Mapping[str, float]], None]]:
        """For `LiveChart`: a click on a chart over training goes to the checkpoint there, and arrow keys on from it."""

        def jump(clicked: Mapping[str, float]) -> None:
            self.go(clicked["x"])
            self.keyboard.take()

        return {JUMP: jump}

    def _moved(self, _=None) -> None:
        if not self._offering:
            self.step = self.slider.value
            loss = self._losses.get(self.step)
            self.loss.value = "" if loss is None else f"loss {loss:.3f}"


def nearest(steps: Iterable[int], step: float) -> int:
    """The checkpoint nearest to a step, on a logarithmic axis."""
    place = math.log(max(step, BEFORE_ONE))
    return min(steps, key=lambda each: abs(math.log(max(each, BEFORE_ONE)) - place))


def together(*explorers) -> None:
    """Explorers whose checkpoints move together: each goes to its checkpoint nearest to where another was put."""
    sliders = [explorer.checkpoint for explorer in explorers]
    moving = False

    def follow(change) -> None:
        nonlocal moving
        if moving:
            return
        moving = True
        try:
            for slider in sliders:
                if slider is not change["owner"]:
                    slider.go(change["new"])
        finally:
            moving = False

    for slider in sliders:
        slider.observe(follow, names="step")
    follow({"owner": sliders[0], "new": sliders[0].step})
