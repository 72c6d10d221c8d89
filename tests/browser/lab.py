"""A real JupyterLab on a loopback port, and a page in Chromium that opens notebooks in it."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
_FLAGS = (  # no sandbox: Chromium refuses to start as root with one; the rest keeps it from calling home
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SETTINGS = {  # no dialog over the page, and every cell rendered, also those out of view
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
_RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
_RESTART = """() => {
  window.restarted = false;
  window.jupyterapp.commands.execute('notebook:restart-run-all').then(() => { window.restarted = true; });
}"""
_ASK = """async asked => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code: '', silent: true, store_history: false, user_expressions: {asked}});
  return (await future.done).content.user_expressions.asked;
}"""
_END_KERNELS = "() => window.jupyterapp?.serviceManager.sessions.shutdownAll()"  # the server goes on
_THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
_MODEL = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON()"
_READY = """path => {
  const widget = window.jupyterapp?.shell.currentWidget;
  const idle = widget?.sessionContext?.session?.kernel?.status === 'idle';
  return idle && widget.context.path === path && widget.content.model !== null;
}"""
_REOPEN = """async path => {
  const {commands, serviceManager, shell} = window.jupyterapp;
  await commands.execute('docmanager:save');
  shell.currentWidget.close();
  await serviceManager.sessions.shutdownAll();
  const kernelPreference = {shouldStart: false, canStart: false, autoStartDefault: false};
  await commands.execute('docmanager:open', {path, factory: 'Notebook', kernelPreference});
}"""
_OPENED = """path => {
  const widget = window.jupyterapp.shell.currentWidget;
  return widget?.context?.path === path && widget.content.model !== null && !widget.sessionContext.session;
}"""
_CHARTS = """() => [...document.querySelectorAll('.vega-embed svg, .jp-RenderedImage img')]
  .filter(drawn => drawn.checkVisibility() && drawn.getBoundingClientRect().width > 40).length"""
_DONE = """() => {
  const widget = window.jupyterapp.shell.currentWidget;
  const cells = widget.content.model.toJSON().cells.filter(cell => cell.cell_type === 'code' && cell.source.length);
  const failed = cells.some(cell => cell.outputs.some(output => output.output_type === 'error'));
  const idle = widget.sessionContext.session.kernel.status === 'idle';
  return idle && (failed || cells.every(cell => cell.execution_count !== null));
}"""


@contextmanager
def jupyter_lab(root: Path, scratch: Path, **environment: str) -> Iterator[str]:
    """JupyterLab serving `root`, with its settings under `scratch`; gives its address, with the token."""
    settings = scratch / "settings"
    for name, content in _SETTINGS.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    runtime = scratch / "runtime"
    folders = {
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(scratch / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (scratch / "jupyter.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | folders | environment)
        try:
            yield _address(server, runtime, scratch / "jupyter.log")
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _address(server: subprocess.Popen, runtime: Path, log: Path) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            try:
                facts = json.loads(file.read_text())
            except ValueError:  # still being written
                continue
            return f"{facts['url']}lab/tree/{{}}?reset&token={facts['token']}"
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@dataclass
class Notebook:
    """A notebook open in JupyterLab, and the errors and external requests of its page."""

    page: Page
    console: list[str] = field(default_factory=list)  # errors and uncaught exceptions
    outside: list[str] = field(default_factory=list)  # requests to anywhere but this machine

    def watch(self) -> None:
        self.page.on("console", lambda message: self.console.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self._record_request(request.url))

    def _record_request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)

    def open(self, address: str, path: str) -> None:
        """Open the notebook at `path` under the server's root and wait for its kernel."""
        self.page.goto(address.format(quote(path)))
        self.page.wait_for_function(_READY, arg=path, timeout=300_000, polling=250)

    def press_run_all(self) -> None:
        """Run > Run All Cells, without waiting."""
        self.page.evaluate(f"() => {{ ({_RUN_ALL})() }}")

    def run_all(self) -> None:
        """Run > Run All Cells, and wait until every cell has run, or one has failed, and widgets are drawn."""
        self.page.evaluate(_RUN_ALL)
        self.page.wait_for_function(_DONE, timeout=600_000, polling=250)
        self.page.wait_for_timeout(1500)

    def restart_and_run_all(self) -> None:
        """Kernel > Restart Kernel and Run All Cells, its question answered with yes; wait as `run_all` does."""
        self.page.evaluate(_RESTART)
        self.page.locator(".jp-Dialog button.jp-mod-accept").click()
        self.page.wait_for_function("window.restarted", timeout=600_000, polling=250)
        self.page.wait_for_function(_DONE, timeout=600_000, polling=250)
        self.page.wait_for_timeout(1500)

    def reopen_without_kernel(self, path: str) -> None:
        """Save and close the notebook, end its kernel, and open it again with none."""
        self.page.evaluate(_REOPEN, path)
        self.page.wait_for_function(_OPENED, arg=path)
        self.page.wait_for_timeout(3000)  # a widget's model is looked for during two seconds

    def charts(self) -> int:
        """How many charts are visible, drawn or as pictures."""
        return self.page.evaluate(_CHARTS)

    def ask(self, expression: str):
        """What a Python expression is in the kernel, a literal; what the page has sent before has arrived by then."""
        answer = self.page.evaluate(_ASK, expression)
        if answer["status"] != "ok":
            raise RuntimeError(f"{expression}: {answer['ename']}: {answer['evalue']}")
        return ast.literal_eval(answer["data"]["text/plain"])

    def answers(self, expression: str, expected, patience: float = 20) -> bool:
        """Whether an expression becomes `expected` in the kernel: a page delays its last move while another is
        being sent."""
        until = time.monotonic() + patience
        while (value := self.ask(expression)) != expected and time.monotonic() < until:
            self.page.wait_for_timeout(100)
        return value == expected

    def set_theme(self, theme: str) -> None:
        """Give JupyterLab another theme, one of `THEMES`."""
        self.page.evaluate(_THEME, THEMES[theme])
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=THEMES[theme])
        self.page.wait_for_timeout(500)

    def outputs(self) -> list[dict]:
        """The outputs of all cells, as the notebook file would hold them."""
        cells = self.page.evaluate(_MODEL)["cells"]
        return [output for cell in cells for output in cell.get("outputs", [])]

    def errors(self) -> list[str]:
        """The errors among the outputs, one line each."""
        return [f"{o['ename']}: {o['evalue']}" for o in self.outputs() if o["output_type"] == "error"]

    def screenshots(self, folder: Path, name: str) -> list[Path]:
        """Pictures of the notebook from its top to its end, one per screenful."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-*.png"):
            old.unlink()
        scroller = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer").first
        height, visible = scroller.evaluate("node => [node.scrollHeight, node.clientHeight]")
        pictures = []
        for part, top in enumerate(range(0, height, max(visible - 60, 1))):
            scroller.evaluate("(node, top) => node.scrollTo(0, top)", top)
            self.page.wait_for_timeout(400)
            pictures.append(folder / f"{name}-{part:02d}.png")
            self.page.screenshot(path=pictures[-1])
            if top + visible >= height:
                break
        return pictures


@contextmanager
def notebook_page(width: int = 1400, height: int = 1000) -> Iterator[Notebook]:
    """A page in headless Chromium, watched from the start."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            notebook = Notebook(browser.new_page(viewport={"width": width, "height": height}))
            notebook.page.set_default_timeout(180_000)  # a busy machine is slow, not wrong
            notebook.watch()
            yield notebook
            notebook.page.evaluate(_END_KERNELS)
        finally:
            browser.close()
