"""What a browser would send back of a page, for tests that do without one."""

from __future__ import annotations

import http.cookiejar
import urllib.error
import urllib.parse
import urllib.request
from html.parser import HTMLParser


def sent_back(html: str) -> dict[str, str]:
    """The fields of the page's form as they are, if nobody touches them."""
    parser = _Form()
    parser.feed(html)
    return parser.fields


class _Form(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._text = self._select = ""
        self._first_line = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name, value = given.get("name") or "", given.get("value")
        if tag == "input" and name:
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self.fields[name] = "on" if value is None and "checked" in given else value or ""
        elif tag == "textarea":
            self._text, self.fields[name], self._first_line = name, "", True
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in given:
            self.fields[self._select] = value or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._text:
            if self._first_line:  # HTML leaves out the newline after the tag
                data = data.removeprefix("\n").removeprefix("\r\n")
            self._first_line = False
            self.fields[self._text] += data


class Person:
    """Somebody who goes through the pages of a site, with cookies of their own."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._browser = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        self.url = self.page = ""

    def goes_to(self, path: str) -> str:
        return self._open(self._site + path, None)

    def sends(self, **changes: str) -> str:
        """Submit the page's form, with these fields changed."""
        return self._open(self.url, {**sent_back(self.page), **changes})

    def _open(self, url: str, data: dict[str, str] | None) -> str:
        body = None if data is None else urllib.parse.urlencode(data).encode()
        with self._browser.open(url, body, timeout=60) as answer:
            self.url, self.page = answer.url, answer.read().decode()
        return self.page
