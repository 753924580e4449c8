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
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = channels(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility()) continue;
    if (element.closest(".unseen, noscript, datalist, option")) continue;
    const both = [getComputedStyle(element).color].map(channels).concat([behind(element)]);
    const [light, dark] = both.map(luminance).sort((a, b) => b - a);
    found.push([text.slice(0, 40), Math.round((light + 0.05) / (dark + 0.05) * 100) / 100]);
  }
  return found;
}"""
"""Each visible text with its contrast to what is behind it (WCAG 2.2, 1.4.3)."""

TOO_WIDE = """() => {
  const within = element => element.getBoundingClientRect().right <= innerWidth + 0.5;
  const clips = element => {
    for (let one = element.parentElement; one !== document.body; one = one.parentElement)
      if (getComputedStyle(one).overflowX !== "visible" && within(one)) return true;
    return false;
  };
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility() || element.closest(".unseen")) continue;
    const name = `${element.tagName} ${element.id || element.className}`;
    if (element.offsetWidth && !within(element) && !clips(element))
      found.push(`${name} is too wide`);
    const scrolls = /auto|scroll/.test(getComputedStyle(element).overflowX);
    if (scrolls && element.scrollWidth > element.clientWidth + 1)
      found.push(`${name} scrolls sideways`);
  }
  return found;
}"""
"""What reaches beyond the right edge, or would have to be scrolled sideways."""

WATCH_SHIFTS = """() => {
  window.shifts = [];
  const nameOf = node => node && (node.id || node.className || node.nodeName);
  new PerformanceObserver(list => {
    for (const entry of list.getEntries())
      window.shifts.push({value: entry.value, by: entry.sources.map(one => nameOf(one.node))});
  }).observe({type: "layout-shift", buffered: true});
}"""
"""Collect layout shifts from the first paint on in `window.shifts`."""

FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  const box = one.getBoundingClientRect();
  return {
    name: one.id || one.className || one.textContent.trim().slice(0, 30) || one.tagName,
    tag: one.tagName,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
    seen: box.width > 0 && box.height > 0,
  };
}"""
"""What has the focus, and whether one can see that."""
