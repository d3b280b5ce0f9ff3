"""What a learner does in JupyterLab: open, run all, press a key on a slider, edit a cell."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

PAGE_SECONDS = 120
NOTEBOOK_SECONDS = 1800
QUIET_SECONDS = 3.0
STEP_PIXELS = 400


class LabPage:
    """One notebook open in one browser tab.

    Args:
        page: a playwright page.
        address: of the server, as in http://127.0.0.1:8888.
        token: of the server.
        root: folder on disk that the server serves.
    """

    def __init__(self, page: Any, address: str, token: str, root: Path) -> None:
        self.page, self.address, self.token, self.root = page, address, token, root
        page.set_default_timeout(PAGE_SECONDS * 1000)

    def open(self, notebook: str) -> None:
        """Open a notebook, given as a path below the root, and wait for its kernel to be idle."""
        self.path = self.root / notebook
        query = urllib.parse.urlencode({"token": self.token, "reset": ""})
        self.page.goto(f"{self.address}/lab/tree/{notebook}?{query}")
        self.page.wait_for_selector(".jp-Notebook-cell")
        # Before this, Run All Cells is accepted and does nothing.
        self.page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()

    def menu(self, *titles: str) -> None:
        """Choose a menu's entry, as in menu("Run", "Run All Cells")."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{titles[0]}$")).click()
        for title in titles[1:]:
            label = re.compile(f"^{re.escape(title)}")
            self.page.locator(".lm-Menu-itemLabel:visible", has_text=label).first.click()

    def run_all(self) -> list[dict[str, Any]]:
        """Clear all outputs and run all cells by the menu; the code cells as saved afterwards."""
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")
        deadline = time.monotonic() + NOTEBOOK_SECONDS
        while time.monotonic() < deadline:
            self.wait_for_kernel()
            cells = [cell for cell in self.saved()["cells"] if cell["cell_type"] == "code"]
            # After an error JupyterLab runs no further cell.
            if all(cell["execution_count"] for cell in cells) or failures(cells):
                return cells
        raise TimeoutError(f"{self.path.name}: not every cell ran within {NOTEBOOK_SECONDS} s")

    def saved(self) -> dict[str, Any]:
        """The notebook as JupyterLab saves it now."""
        before = self.path.stat().st_mtime_ns
        self.menu("File", "Save Notebook")
        deadline = time.monotonic() + PAGE_SECONDS
        while time.monotonic() < deadline:
            self.page.wait_for_timeout(250)
            if self.path.stat().st_mtime_ns != before:
                # The server is still writing while the text is no whole notebook.
                with contextlib.suppress(json.JSONDecodeError):
                    return json.loads(self.path.read_text(encoding="utf-8"))
        raise TimeoutError(f"{self.path.name} was not saved within {PAGE_SECONDS} s")

    def wait_for_kernel(self) -> None:
        """Until the kernel has been idle for a while, at most NOTEBOOK_SECONDS."""
        deadline = time.monotonic() + NOTEBOOK_SECONDS
        idle_since = None
        while time.monotonic() < deadline:
            if any(kernel["execution_state"] != "idle" for kernel in self._kernels()):
                idle_since = None
            elif idle_since is None:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > QUIET_SECONDS:
                return
            self.page.wait_for_timeout(250)
        raise TimeoutError(f"{self.path.name}: the kernel is busy after {NOTEBOOK_SECONDS} s")

    def _kernels(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.address}/api/kernels", headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def scroll_to(self, selector: str, text: str | None = None) -> Any:
        """The first element that matches, scrolled to: far cells are not in the page at all."""
        wanted = self.page.locator(selector, has_text=text) if text else self.page.locator(selector)
        panel = self.page.locator(".jp-WindowedPanel-outer:visible").first
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        while True:
            self.page.wait_for_timeout(200)
            if wanted.count():
                wanted.first.scroll_into_view_if_needed()
                return wanted.first
            if not panel.evaluate(
                "(panel, step) => { const before = panel.scrollTop;"
                " panel.scrollBy(0, step); return panel.scrollTop > before; }",
                STEP_PIXELS,
            ):
                raise LookupError(f"{self.path.name} shows no {selector} {text or ''}")

    def press_on_slider(self, key: str, times: int = 1) -> tuple[dict[str, str], dict[str, str]]:
        """Press a key on the first slider beside a picture; the picture's src and alt, and then."""
        output = self.scroll_to(".jp-OutputArea-output:has(.noUi-handle):has(img)")
        picture, handle = output.locator("img").first, output.locator(".noUi-handle").first
        before = _attributes(picture)
        handle.focus()
        for _ in range(times):
            handle.press(key)
        deadline = time.monotonic() + PAGE_SECONDS
        while _attributes(picture) == before and time.monotonic() < deadline:
            self.page.wait_for_timeout(200)
        self.wait_for_kernel()  # every key press draws once
        return before, _attributes(picture)

    def answer(self, exercise_id: str, source: str) -> str:
        """Replace the cell of an exercise by `source`, run it; the words printed below it."""
        cell = self.scroll_to(".jp-CodeCell", f'check("{exercise_id}"')
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Control+Enter")
        self.wait_for_kernel()
        return " ".join(cell.locator(".jp-OutputArea").inner_text().split())


def failures(cells: list[dict[str, Any]]) -> list[str]:
    """The error outputs of some saved code cells."""
    return [
        f"{output['ename']}: {output['evalue']}, in:\n{''.join(cell['source'])}"
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]


def _attributes(picture: Any) -> dict[str, str]:
    return {name: picture.get_attribute(name) or "" for name in ("src", "alt")}
