"""A real browser for tests, and what is asked of any page in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """The Chromium of this machine, without a window; the test is skipped where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs a browser, and there is none in PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        # As root there is no sandbox; a spare renderer would look like a process left behind.
        running = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-features=SpareRendererForSitePerProcess"],
        )
        try:
            running.new_context().new_page().context.close()
            yield running
        finally:
            running.close()


@dataclass
class Visit:
    """One page in a context of its own, and all that it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """Open a page; afterwards it must not have complained of anything."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(15_000)
    page = context.new_page()
    seen = Visit(page)
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
    try:
        page.goto(url)
        page.wait_for_selector("body[data-ready=yes]")
        yield seen
    finally:
        context.close()
    assert seen.complaints == [], seen.complaints


CONTRASTS = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest(".unseen, noscript, datalist, option")) continue;
    const [light, dark] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))].sort((a, b) => b - a);
    found.push([text.slice(0, 40), Math.round((light + 0.05) / (dark + 0.05) * 100) / 100]);
  }
  return found;
}"""
"""Each visible text with its contrast to what is behind it (WCAG 2.2, 1.4.3)."""

TOO_WIDE = """() => {
  const clips = element => {
    for (let one = element.parentElement; one && one !== document.body; one = one.parentElement)
      if (getComputedStyle(one).overflowX !== "visible" && one.getBoundingClientRect().right <= innerWidth + 0.5) return true;
    return false;
  };
  const found = document.documentElement.scrollWidth > innerWidth ? ["the page scrolls sideways"] : [];
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (element.checkVisibility() && !element.closest(".unseen") && box.width && box.right > innerWidth + 0.5 && !clips(element))
      found.push(`${element.tagName} ${element.id || element.className}: ${box.right}`);
    if (element.checkVisibility() && /auto|scroll/.test(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth + 1)
      found.push(`${element.tagName} ${element.id || element.className} scrolls sideways`);
  }
  return found;
}"""
"""What reaches beyond the right edge, or would have to be scrolled sideways."""

WATCH_SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver(list => {
    for (const entry of list.getEntries())
      window.shifts.push({value: entry.value, by: entry.sources.map(one => one.node?.id || one.node?.className || one.node?.nodeName)});
  }).observe({type: "layout-shift", buffered: true});
}"""
"""Collect layout shifts from the first paint on in `window.shifts`."""

FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), before = one.getBoundingClientRect();
  return {
    name: one.id || one.className || one.textContent.trim().slice(0, 30) || one.tagName,
    tag: one.tagName,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    seen: before.width > 0 && before.height > 0,
  };
}"""
"""What has the focus, and whether one can see that."""
